"""Image sets: read from files, cached, and augmented on the device."""
