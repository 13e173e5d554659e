"""All that touches the kernel: nothing outside this package imports bcc, pyroute2 or ctypes."""
