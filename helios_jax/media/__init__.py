"""Media: images and videos in, mp4 files and contact sheets out."""
