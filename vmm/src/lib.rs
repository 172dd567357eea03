//! Machines: a KVM virtual machine monitor, one process per VM, and its supervisor.
