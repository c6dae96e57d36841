"""Services of the machine for all other packages: devices, random states, storage, child processes, logs, optional packages."""
