//! The ACPI tables: how a stock kernel finds CPUs, devices, the serial line and the power button.
//!
//! Hardware-reduced ACPI (ACPI 6.5, section 4.1): no PM1 blocks; the sleep and reset registers and a generic
//! event device (section 5.6.9) do their work.

use super::layout::{
    ACPI, ACPI_END, COM1, COM1_GSI, COM1_PORTS, EVENTS, EVENTS_GSI, GENERATION_ID, IO_APIC, LOCAL_APIC,
    RESET, RESET_VALUE, SLEEP_CONTROL, SLEEP_STATUS, VIRTIO_STRIDE, virtio_gsi, virtio_registers,
};
use super::power::{EVENT_GENERATION, EVENT_POWER_BUTTON, S5};
use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If,
    Interrupt, Local, Memory32Fixed, Method, Name, Notify, ONE, OpRegion, OpRegionSpace, Package, Path,
    ResourceTemplate, Store, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

const OEM: [u8; 6] = *b"GTHOUS";
const OEM_TABLE: [u8; 8] = *b"GATEHOUS";
const OEM_REVISION: u32 = 1;
/// Revision 2: integers have 64 bits.
const DSDT_REVISION: u8 = 2;
/// `IAPC_BOOT_ARCH` (ACPI 6.5, table 5.11): no VGA, no CMOS clock; without further bits also no keyboard
/// controller and no other legacy devices.
const BOOT_ARCH_NO_VGA_NO_CMOS: u16 = (1 << 2) | (1 << 5);
/// Notification of a button: pressed (ACPI 6.5, table 5.177); of VMGenID: changed.
const NOTIFY_0X80: u8 = 0x80;
/// Tables begin at multiples of this.
const ALIGNMENT: u64 = 16;

/// The tables as one run of bytes that belongs at [`ACPI`]; the RSDP is at its start.
#[must_use]
pub fn tables(vcpus: u8, virtio_devices: usize) -> Vec<u8> {
    let mut image = Image { bytes: vec![0; Rsdp::len()] };
    let dsdt = image.add(&dsdt(virtio_devices));
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION).dsdt_64(dsdt);
    for flag in
        [Flags::HwReducedAcpi, Flags::PwrButton, Flags::SlpButton, Flags::ResetRegSup, Flags::Headless]
    {
        fadt = fadt.flag(flag);
    }
    fadt.iapc_boot_arch = BOOT_ARCH_NO_VGA_NO_CMOS.into();
    fadt.reset_reg = port(RESET);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(SLEEP_CONTROL);
    fadt.sleep_status_reg = port(SLEEP_STATUS);
    let fadt = image.add(&fadt.finalize());
    let madt = image.add(&madt(vcpus));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = image.add(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    image.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    assert!(image.bytes.len() as u64 <= ACPI_END - ACPI, "eight CPUs and eight devices fit");
    image.bytes
}

struct Image {
    bytes: Vec<u8>,
}

impl Image {
    /// Appends a table; returns its guest physical address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
        let address = ACPI + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

fn port(number: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(number))
}

fn madt(vcpus: u8) -> MADT {
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, LocalInterruptController::Address(LOCAL_APIC));
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}

fn dsdt(virtio_devices: usize) -> Sdt {
    let mut aml = Vec::new();
    for index in 0..virtio_devices {
        virtio_device(index, &mut aml);
    }
    serial(&mut aml);
    power(&mut aml);
    generation_id(&mut aml);
    events(&mut aml);
    let mut table = Sdt::new(*b"DSDT", 36, DSDT_REVISION, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&aml);
    table
}

fn virtio_device(index: usize, aml: &mut Vec<u8>) {
    let registers = Memory32Fixed::new(true, virtio_registers(index) as u32, VIRTIO_STRIDE as u32);
    let line = Interrupt::new(true, true, false, false, virtio_gsi(index));
    Device::new(
        format!("_SB_.VR{index:02}").as_str().into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &(index as u32)),
            &Name::new("_CCA".into(), &ONE),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&registers, &line])),
        ],
    )
    .to_aml_bytes(aml);
}

fn serial(aml: &mut Vec<u8>) {
    let line = Interrupt::new(true, true, false, false, COM1_GSI);
    Device::new(
        "_SB_.COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&line, &IO::new(COM1, COM1, 1, COM1_PORTS as u8)]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// Soft-off, and the power button as a control-method device.
fn power(aml: &mut Vec<u8>) {
    Name::new("_S5_".into(), &Package::new(vec![&S5, &ZERO, &ZERO, &ZERO])).to_aml_bytes(aml);
    Device::new(
        "_SB_.PWRB".into(),
        vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C")), &Name::new("_UID".into(), &ZERO)],
    )
    .to_aml_bytes(aml);
}

/// "Virtual Machine Generation ID" (Microsoft, 2018): sixteen bytes that are new in each copy of a VM.
fn generation_id(aml: &mut Vec<u8>) {
    let (low, high) = (GENERATION_ID as u32, (GENERATION_ID >> 32) as u32);
    Device::new(
        "_SB_.VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"VMGENCTR"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
        ],
    )
    .to_aml_bytes(aml);
}

/// The generic event device: its method reads which events there are and tells their devices.
fn events(aml: &mut Vec<u8>) {
    let line = Interrupt::new(true, true, false, false, EVENTS_GSI);
    let fields = vec![FieldEntry::Named(*b"EVTS", 8)];
    let happened = Local(0);
    let button = And::new(&ZERO, &happened, &EVENT_POWER_BUTTON);
    let generation = And::new(&ZERO, &happened, &EVENT_GENERATION);
    Device::new(
        "_SB_.GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&line])),
            &OpRegion::new("EREG".into(), OpRegionSpace::SystemIO, &EVENTS, &ONE),
            &Field::new(
                "EREG".into(),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                fields,
            ),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    &Store::new(&happened, &Path::new("EVTS")),
                    &If::new(&button, vec![&Notify::new(&Path::new("\\_SB_.PWRB"), &NOTIFY_0X80)]),
                    &If::new(&generation, vec![&Notify::new(&Path::new("\\_SB_.VGEN"), &NOTIFY_0X80)]),
                ],
            ),
        ],
    )
    .to_aml_bytes(aml);
}

#[cfg(test)]
mod tests {
    use super::super::layout::MAX_VIRTIO;
    use super::*;

    fn at(image: &[u8], address: u64) -> &[u8] {
        let start = (address - ACPI) as usize;
        let bytes = u32::from_le_bytes(image[start + 4..start + 8].try_into().expect("four")) as usize;
        &image[start..start + bytes]
    }

    fn address(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight"))
    }

    #[test]
    fn every_table_is_reached_and_sums_to_zero() {
        let image = tables(8, MAX_VIRTIO);
        assert_eq!(&image[..8], b"RSD PTR ");
        let xsdt = at(&image, address(&image, 24));
        let (fadt, madt) = (at(&image, address(xsdt, 36)), at(&image, address(xsdt, 44)));
        let dsdt = at(&image, address(fadt, 140));
        for (table, signature) in [(xsdt, b"XSDT"), (fadt, b"FACP"), (madt, b"APIC"), (dsdt, b"DSDT")] {
            assert_eq!(&table[..4], signature);
            assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "{signature:?}");
        }
        assert_eq!(madt.len(), 44 + 8 * 8 + 12);
        assert_eq!(dsdt.windows(8).filter(|w| *w == b"LNRO0005").count(), MAX_VIRTIO);
    }
}
