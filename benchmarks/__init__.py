"""Where speed, memory and accuracy are claimed. The package never imports this folder."""
