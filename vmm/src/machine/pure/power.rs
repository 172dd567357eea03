//! The ports by which guest and machine speak of power: ACPI sleep and reset registers, the event register of the
//! generic event device, and the reset line of the keyboard controller.

use super::layout::{EVENTS, I8042_COMMAND, I8042_RESET, RESET, RESET_VALUE, SLEEP_CONTROL, SLEEP_STATUS};

/// Sleep type of soft-off, as the DSDT's `_S5` says it.
pub const S5: u8 = 5;
/// `SLP_EN` of the sleep control register (ACPI 6.5, table 4.19).
const SLEEP_ENABLE: u8 = 1 << 5;
/// Position of `SLP_TYPx`.
const SLEEP_TYPE_SHIFT: u8 = 2;

/// Event: the power button was pressed.
pub const EVENT_POWER_BUTTON: u8 = 1 << 0;
/// Event: the VM generation id changed.
pub const EVENT_GENERATION: u8 = 1 << 1;

/// What the guest wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Power off.
    PowerOff,
    /// Start again.
    Reset,
}

/// The registers' state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Power {
    events: u8,
}

impl Power {
    /// Whether a port is one of these.
    #[must_use]
    pub fn has(port: u16) -> bool {
        matches!(port, SLEEP_CONTROL | SLEEP_STATUS | RESET | EVENTS | I8042_COMMAND)
    }

    /// Events that the guest has not read.
    #[must_use]
    pub fn pending(&self) -> u8 {
        self.events
    }

    /// Notes an event; the caller then raises the interrupt line of the event device.
    pub fn raise(&mut self, event: u8) {
        self.events |= event;
    }

    /// The guest reads a byte.
    pub fn read(&mut self, port: u16) -> u8 {
        if port == EVENTS { std::mem::take(&mut self.events) } else { 0 }
    }

    /// The guest writes a byte.
    #[must_use]
    pub fn write(port: u16, value: u8) -> Option<Wish> {
        let off = SLEEP_ENABLE | (S5 << SLEEP_TYPE_SHIFT);
        match port {
            SLEEP_CONTROL if value == off => Some(Wish::PowerOff),
            RESET if value == RESET_VALUE => Some(Wish::Reset),
            I8042_COMMAND if value == I8042_RESET => Some(Wish::Reset),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn off_reset_and_nothing() {
        assert_eq!(Power::write(SLEEP_CONTROL, 0x34), Some(Wish::PowerOff));
        assert_eq!(Power::write(SLEEP_CONTROL, 0x14), None);
        assert_eq!(Power::write(RESET, 1), Some(Wish::Reset));
        assert_eq!(Power::write(I8042_COMMAND, 0xfe), Some(Wish::Reset));
        assert_eq!(Power::write(SLEEP_STATUS, 0x80), None);
    }

    #[test]
    fn events_are_told_once() {
        let mut power = Power::default();
        power.raise(EVENT_POWER_BUTTON);
        power.raise(EVENT_GENERATION);
        assert_eq!(power.read(EVENTS), EVENT_POWER_BUTTON | EVENT_GENERATION);
        assert_eq!(power.read(EVENTS), 0);
    }
}
