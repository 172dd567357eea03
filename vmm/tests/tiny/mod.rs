//! Guests of a few instructions, which run on any `/dev/kvm`: also on one that interprets kernel code and knows
//! no `cmpxchg16b`, `xsave` or `int3`.

#![allow(dead_code, reason = "each test program uses a part")]

use vmm::machine::pure::layout::{COM1, EVENTS, RESET, SLEEP_CONTROL};

/// Where the code is loaded and entered.
pub const ENTRY: u64 = 0x10_0000;
/// Where code for further vCPUs lies: the page that start-up vector 0x10 means.
const STARTUP: u32 = 0x1_0000;
/// Addresses that the guest maps by hand: the last two large pages of its first GiB.
const WINDOW_DEVICES: u64 = 0x3fe0_0000;
const WINDOW_APIC: u64 = 0x3fc0_0000;

/// Machine code under construction.
#[derive(Clone, Debug, Default)]
pub struct Code(Vec<u8>);

impl Code {
    pub fn new() -> Self {
        Self::default()
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// `mov dx, port; mov al, byte; out dx, al`.
    pub fn out(self, port: u16, byte: u8) -> Self {
        self.port(port).bytes(&[0xb0, byte, 0xee])
    }

    fn port(self, port: u16) -> Self {
        self.bytes(&[0x66, 0xba]).bytes(&port.to_le_bytes())
    }

    pub fn print(self, text: &str) -> Self {
        text.bytes().fold(self, |code, byte| code.out(COM1, byte))
    }

    pub fn power_off(self) -> Self {
        self.out(SLEEP_CONTROL, 0x34).halt()
    }

    pub fn reset(self) -> Self {
        self.out(RESET, 1).halt()
    }

    /// `hlt; jmp` back to it.
    pub fn halt(self) -> Self {
        self.bytes(&[0xf4, 0xeb, 0xfd])
    }

    /// `jmp` to itself.
    pub fn spin(self) -> Self {
        self.bytes(&[0xeb, 0xfe])
    }

    /// `ud2` without an interrupt table: a triple fault.
    pub fn triple_fault(self) -> Self {
        self.bytes(&[0x0f, 0x0b])
    }

    /// `mov eax, address; jmp rax`.
    pub fn jump(self, address: u32) -> Self {
        self.bytes(&[0xb8]).bytes(&address.to_le_bytes()).bytes(&[0xff, 0xe0])
    }

    /// Reads the event register until an event is there: `in al, dx; test al, al; jz` back.
    pub fn await_event(self) -> Self {
        self.port(EVENTS).bytes(&[0xec, 0x84, 0xc0, 0x74, 0xfb])
    }

    /// Prints the first register of the first virtio device: "virt".
    pub fn print_register(self) -> Self {
        // mov rax, device | present, writable, 2 MiB; mov [page directory + 511 * 8], rax
        let code = self.map(511, 0xd000_0000);
        // mov ebx, window; mov eax, [rbx]; mov dx, COM1
        let code =
            code.bytes(&[0xbb]).bytes(&(WINDOW_DEVICES as u32).to_le_bytes()).bytes(&[0x8b, 0x03]).port(COM1);
        // out dx, al; shr eax, 8; four times
        (0..4).fold(code, |code, _| code.bytes(&[0xee, 0xc1, 0xe8, 0x08]))
    }

    /// Starts all other vCPUs, each of which adds one to a counter; waits until there are `others`.
    pub fn start_others(self, others: u8) -> Self {
        // In real mode: lock inc byte [cs:0x100]; hlt; jmp to the hlt
        let stub = [0xf0, 0x2e, 0xfe, 0x06, 0x00, 0x01, 0xf4, 0xeb, 0xfd];
        let code = stub
            .iter()
            .enumerate()
            .fold(self, |code, (index, byte)| code.store(STARTUP + index as u32, *byte));
        let code = code.map(510, 0xfee0_0000);
        // Interrupt command register: INIT, then start-up with vector 0x10, to all but self.
        let code = code.store_word(WINDOW_APIC as u32 + 0x300, 0x000c_4500);
        let code = code.store_word(WINDOW_APIC as u32 + 0x300, 0x000c_4610);
        // mov ebx, counter; cmp byte [rbx], others; jne back
        code.bytes(&[0xbb]).bytes(&(STARTUP + 0x100).to_le_bytes()).bytes(&[0x80, 0x3b, others, 0x75, 0xfb])
    }

    /// Lets entry `index` of the page directory at 0xb000 lead to `physical`.
    fn map(self, index: u32, physical: u64) -> Self {
        self.bytes(&[0x48, 0xb8])
            .bytes(&(physical | 0x83).to_le_bytes())
            .bytes(&[0xbb])
            .bytes(&(0xb000 + index * 8).to_le_bytes())
            .bytes(&[0x48, 0x89, 0x03])
    }

    fn store(self, address: u32, byte: u8) -> Self {
        self.bytes(&[0xbb]).bytes(&address.to_le_bytes()).bytes(&[0xc6, 0x03, byte])
    }

    fn store_word(self, address: u32, word: u32) -> Self {
        self.bytes(&[0xbb]).bytes(&address.to_le_bytes()).bytes(&[0xc7, 0x03]).bytes(&word.to_le_bytes())
    }

    /// The code as an ELF file with one segment.
    pub fn elf(self) -> Vec<u8> {
        const EHDR: u64 = 64;
        const PHDR: u64 = 56;
        let size = self.0.len() as u64;
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        // e_type, e_machine, e_version
        file.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
        for word in [ENTRY, EHDR, 0] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        // e_flags; e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
        file.extend_from_slice(&[0; 4]);
        for half in [EHDR as u16, PHDR as u16, 1, 0, 0, 0] {
            file.extend_from_slice(&half.to_le_bytes());
        }
        // p_type: load; p_flags: all
        file.extend_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]);
        for word in [EHDR + PHDR, ENTRY, ENTRY, size, size, 4096] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(&self.0);
        file
    }
}
