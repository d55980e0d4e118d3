"""What outlives a crash: whole files, locked folders, signals, the watchdog of several processes."""
