"""``helios_ode``: trajectories of a teacher, recorded for its few-step student, in TFDS's format (array_record).

    <folder>/helios_ode/1.0.0/
        dataset_info.json, features.json            TFDS metadata, written last
        helios_ode-48x80.array_record-00003-of-00010
        progress/48x80-00003.json                   the outcome for each prompt of that file
        prepare.json                                the settings of the job that writes the folder

A record (``OdeRecord``) is a video that the teacher generated: of every chunk, on every level of the pyramid, the
samples at the steps that the student will take, and the end point that the student is to reach from each of them
(arXiv 2603.04379). The folder has the layout of ``helios_latents``, whose writer and reader are used.

``HeliosOde`` is the TFDS builder, ``OdeWriter`` writes the files one by one, ``open_ode`` reads them, and
``find_torch_ode`` imports the files of the original implementation.
"""
