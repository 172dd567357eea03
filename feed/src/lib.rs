//! How control's decisions reach the other processes, and how messages with descriptors cross a Unix socket.
