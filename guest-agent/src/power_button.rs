//! The ACPI power button: without a desktop or logind, the agent is who answers it.

use crate::machine;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;

/// Size of `struct input_event` on 64-bit Linux (linux/input.h): 16 bytes of time, type, code, value.
const EVENT_BYTES: usize = 24;
/// `EV_KEY`
const KEY_EVENT: u16 = 1;
/// `KEY_POWER`
const POWER_KEY: u16 = 116;
/// A key going down; 0 is its release, 2 a repetition.
const PRESSED: i32 = 1;

/// Powers off when the button is pressed. Returns when there is no button, or it cannot be heard any more.
pub fn watch() {
    let device = match fs::read_to_string("/proc/bus/input/devices") {
        Ok(list) => event_device(&list),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return eprintln!("gatehouse-agent: cannot look for a power button: {error}"),
    };
    let Some(device) = device else { return eprintln!("gatehouse-agent: no power button here") };
    if let Err(error) = listen(&device) {
        eprintln!("gatehouse-agent: the power button {} is not heard: {error}", device.display());
    }
}

fn listen(device: &PathBuf) -> io::Result<()> {
    let mut events = File::open(device)?;
    let mut event = [0; EVENT_BYTES];
    loop {
        events.read_exact(&mut event)?;
        if is_press(&event) {
            eprintln!("gatehouse-agent: the power button was pressed");
            machine::power_off().map_err(io::Error::other)?;
        }
    }
}

fn is_press(event: &[u8; EVENT_BYTES]) -> bool {
    let [.., a, b, c, d, e, f, g, h] = *event;
    (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]), i32::from_ne_bytes([e, f, g, h]))
        == (KEY_EVENT, POWER_KEY, PRESSED)
}

/// The event device of the first power button in the kernel's list of input devices.
fn event_device(list: &str) -> Option<PathBuf> {
    let button = list.split("\n\n").find(|device| device.contains("Name=\"Power Button\""))?;
    let handlers = button.lines().find_map(|line| line.strip_prefix("H: Handlers="))?;
    let event = handlers.split_ascii_whitespace().find(|name| name.starts_with("event"))?;
    Some(PathBuf::from("/dev/input").join(event))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_button_is_found_and_a_press_is_known() {
        let list = "I: Bus=0017\nN: Name=\"Keyboard\"\nH: Handlers=kbd event0 \n\n\
                    I: Bus=0019\nN: Name=\"Power Button\"\nP: Phys=LNXPWRBN/button/input0\nH: Handlers=kbd event1 \n\n";
        assert_eq!(event_device(list), Some("/dev/input/event1".into()));
        assert_eq!(event_device("N: Name=\"Mouse\"\nH: Handlers=event0\n\n"), None);
        let mut event = [0; EVENT_BYTES];
        event[16] = 1;
        event[18] = 116;
        assert!(!is_press(&event));
        event[20] = 1;
        assert!(is_press(&event));
    }
}
