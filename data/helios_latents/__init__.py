"""``helios_latents``: clips encoded for training, in TFDS's format (array_record, no TensorFlow needed).

    <folder>/helios_latents/1.0.0/
        dataset_info.json, features.json                    TFDS metadata, written last
        helios_latents-48x80.array_record-00003-of-00010    clips whose latents are 48 x 80 (384 x 640 pixels)
        progress/48x80-00003.json                           the outcome for each clip of that file
        prepare.json                                        the settings of the job that writes the folder

Each split holds one latent size, so that a loader can form batches without reading records first. Records are
``LatentRecord``: every 33-frame chunk of a clip is encoded on its own, as Helios generates them, so that position 0
of each chunk covers one pixel frame and positions 1 to 8 four each (arXiv 2603.04379).

``HeliosLatents`` is the TFDS builder (what the files hold), ``LatentWriter`` writes the files one by one,
``open_latents`` reads them and ``find_torch_latents`` imports the files of the original implementation.
"""
