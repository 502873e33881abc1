"""The parts that commands share: options, the frame of a run, progress, backends."""
