"""What every floor may need from the machine: devices, seeds, ranks, storage, faults, logs, optional packages."""
