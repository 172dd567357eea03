//! Messages of the connection protocol (RFC 4254), read and made. Nothing is copied that is not kept.

/// SSH_MSG_DISCONNECT (RFC 4253, section 11.1).
pub const DISCONNECT: u8 = 1;
/// SSH_MSG_GLOBAL_REQUEST.
pub const GLOBAL_REQUEST: u8 = 80;
/// SSH_MSG_REQUEST_SUCCESS.
pub const REQUEST_SUCCESS: u8 = 81;
/// SSH_MSG_REQUEST_FAILURE.
pub const REQUEST_FAILURE: u8 = 82;
/// SSH_MSG_CHANNEL_OPEN.
pub const OPEN: u8 = 90;
/// SSH_MSG_CHANNEL_OPEN_CONFIRMATION.
pub const CONFIRMATION: u8 = 91;
/// SSH_MSG_CHANNEL_OPEN_FAILURE.
pub const OPEN_FAILURE: u8 = 92;
/// SSH_MSG_CHANNEL_WINDOW_ADJUST.
pub const WINDOW_ADJUST: u8 = 93;
/// SSH_MSG_CHANNEL_DATA.
pub const DATA: u8 = 94;
/// SSH_MSG_CHANNEL_EXTENDED_DATA.
pub const EXTENDED_DATA: u8 = 95;
/// SSH_MSG_CHANNEL_EOF.
pub const EOF: u8 = 96;
/// SSH_MSG_CHANNEL_CLOSE.
pub const CLOSE: u8 = 97;
/// SSH_MSG_CHANNEL_REQUEST.
pub const CHANNEL_REQUEST: u8 = 98;
/// SSH_MSG_CHANNEL_SUCCESS.
pub const CHANNEL_SUCCESS: u8 = 99;
/// SSH_MSG_CHANNEL_FAILURE.
pub const CHANNEL_FAILURE: u8 = 100;

/// SSH_OPEN_ADMINISTRATIVELY_PROHIBITED (RFC 4254, section 5.1).
pub const PROHIBITED: u32 = 1;
/// SSH_OPEN_RESOURCE_SHORTAGE.
pub const SHORTAGE: u32 = 4;
/// SSH_EXTENDED_DATA_STDERR (RFC 4254, section 5.2).
const STDERR: u32 = 1;
/// SSH_DISCONNECT_BY_APPLICATION (RFC 4253, section 11.1).
const BY_APPLICATION: u32 = 11;

/// Reads the fields of a message from the front. `None` when there is too little of it.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The fields behind the message's number.
    #[must_use]
    pub fn of(packet: &'a [u8]) -> Self {
        Self(packet.get(1..).unwrap_or_default())
    }

    /// A number.
    pub fn number(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*bytes))
    }

    /// A truth value.
    pub fn truth(&mut self) -> Option<bool> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte != 0)
    }

    /// A string, which is bytes.
    pub fn string(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(text)
    }
}

/// The number of bytes of [`DATA`] or [`EXTENDED_DATA`]; none when the message is not as long as it says.
#[must_use]
pub fn data_length(packet: &[u8]) -> Option<u32> {
    let mut fields = Fields::of(packet);
    fields.number()?;
    if packet.first() == Some(&EXTENDED_DATA) {
        fields.number()?;
    }
    let data = fields.string()?;
    fields.0.is_empty().then_some(u32::try_from(data.len()).ok()?)
}

/// Cuts [`DATA`] or [`EXTENDED_DATA`] after `length` bytes of data: what is left in place, and the rest as a message.
/// `None` when there is no more than that.
pub fn split_data(packet: &mut Vec<u8>, length: u32) -> Option<Vec<u8>> {
    let head = if packet.first() == Some(&EXTENDED_DATA) { 9 } else { 5 };
    let data = head + 4;
    let cut = data + usize::try_from(length).ok()?;
    if packet.len() <= cut {
        return None;
    }
    let mut rest = packet.get(..head)?.to_vec();
    rest.extend(u32::try_from(packet.len() - cut).ok()?.to_be_bytes());
    rest.extend(packet.get(cut..)?);
    packet.truncate(cut);
    packet.get_mut(head..data)?.copy_from_slice(&length.to_be_bytes());
    Some(rest)
}

/// Writes another number in the place of the one that begins `at` bytes into the message.
pub fn rewrite(packet: &mut [u8], at: usize, number: u32) {
    if let Some(place) = packet.get_mut(at..at + 4) {
        place.copy_from_slice(&number.to_be_bytes());
    }
}

/// Where the recipient stands in every message of a channel.
pub const RECIPIENT: usize = 1;

fn message(number: u8, fields: &[u32]) -> Vec<u8> {
    let mut packet = vec![number];
    packet.extend(fields.iter().flat_map(|field| field.to_be_bytes()));
    packet
}

fn put(packet: &mut Vec<u8>, text: &[u8]) {
    // Texts here are our own and short.
    packet.extend(u32::try_from(text.len()).unwrap_or_default().to_be_bytes());
    packet.extend(text);
}

/// Says that a channel is open.
#[must_use]
pub fn confirmation(recipient: u32, sender: u32, window: u32, max: u32) -> Vec<u8> {
    message(CONFIRMATION, &[recipient, sender, window, max])
}

/// Refuses a channel.
#[must_use]
pub fn open_failure(recipient: u32, reason: u32, text: &str) -> Vec<u8> {
    let mut packet = message(OPEN_FAILURE, &[recipient, reason]);
    put(&mut packet, text.as_bytes());
    put(&mut packet, b"");
    packet
}

/// Allows so many bytes more.
#[must_use]
pub fn window_adjust(recipient: u32, bytes: u32) -> Vec<u8> {
    message(WINDOW_ADJUST, &[recipient, bytes])
}

/// A message that has only a recipient: [`EOF`], [`CLOSE`], [`CHANNEL_SUCCESS`], [`CHANNEL_FAILURE`].
#[must_use]
pub fn bare(number: u8, recipient: u32) -> Vec<u8> {
    message(number, &[recipient])
}

/// Text to a session's stderr.
#[must_use]
pub fn stderr(recipient: u32, text: &str) -> Vec<u8> {
    let mut packet = message(EXTENDED_DATA, &[recipient, STDERR]);
    put(&mut packet, text.as_bytes());
    packet
}

/// The question whether the client is there, as OpenSSH asks it.
#[must_use]
pub fn keepalive() -> Vec<u8> {
    let mut packet = vec![GLOBAL_REQUEST];
    put(&mut packet, KEEPALIVE);
    packet.push(1);
    packet
}

/// The name of that question (PROTOCOL of OpenSSH, which answers it with a failure).
pub const KEEPALIVE: &[u8] = b"keepalive@openssh.com";

/// The end of the connection, with a text that OpenSSH shows.
#[must_use]
pub fn disconnect(text: &str) -> Vec<u8> {
    let mut packet = message(DISCONNECT, &[BY_APPLICATION]);
    put(&mut packet, text.as_bytes());
    put(&mut packet, b"");
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn data(bytes: &[u8], extended: bool) -> Vec<u8> {
        let mut packet = if extended { message(EXTENDED_DATA, &[7, 1]) } else { message(DATA, &[7]) };
        put(&mut packet, bytes);
        packet
    }

    proptest! {
        #[test]
        fn data_is_cut_and_nothing_lost(bytes in proptest::collection::vec(any::<u8>(), 0..100),
                                        cut in 1u32..120, extended: bool) {
            let mut packet = data(&bytes, extended);
            prop_assert_eq!(data_length(&packet), Some(bytes.len() as u32));
            let rest = split_data(&mut packet, cut);
            let at = bytes.len().min(cut as usize);
            prop_assert_eq!(packet, data(&bytes[..at], extended));
            prop_assert_eq!(rest, (at < bytes.len()).then(|| data(&bytes[at..], extended)));
        }

        #[test]
        fn noise_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60), cut: u32) {
            let _length = data_length(&bytes);
            let _rest = split_data(&mut bytes.clone(), cut % 80);
        }
    }
}
