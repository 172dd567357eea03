//! Where one WebSocket frame ends and the next begins (RFC 6455 section 5.2), so that a tunnel that must be cut can
//! be ended with a close frame and not in the middle of a message.

/// A close frame from server to client with status 1001, "going away" (RFC 6455 section 7.4.1).
pub const GOING_AWAY: [u8; 4] = [0x88, 0x02, 0x03, 0xe9];

/// Most bytes of a frame's header: two, eight of length, four of mask.
const MAX_HEADER_BYTES: usize = 14;

/// Follows the frames of one direction.
#[derive(Clone, Debug, Default)]
pub struct FrameTracker {
    header: [u8; MAX_HEADER_BYTES],
    have: usize,
    payload_left: u64,
}

impl FrameTracker {
    /// Takes note of bytes that have passed.
    pub fn passed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let step = bytes.len().min(usize::try_from(self.payload_left).unwrap_or(usize::MAX));
                self.payload_left -= step as u64;
                bytes = &bytes[step..];
                continue;
            }
            self.header[self.have] = bytes[0];
            self.have += 1;
            bytes = &bytes[1..];
            if self.have == header_bytes(&self.header[..self.have]) {
                self.payload_left = payload_bytes(&self.header);
                self.have = 0;
            }
        }
    }

    /// Whether the bytes so far end where a frame ends.
    #[must_use]
    pub fn between_frames(&self) -> bool {
        self.have == 0 && self.payload_left == 0
    }
}

/// How long the header is, as far as its bytes so far tell.
fn header_bytes(header: &[u8]) -> usize {
    let Some(second) = header.get(1) else { return 2 };
    let length = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    2 + length + mask
}

fn payload_bytes(header: &[u8; MAX_HEADER_BYTES]) -> u64 {
    let wide = |bytes: &[u8]| bytes.iter().fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte));
    match header[1] & 0x7f {
        126 => wide(&header[2..4]),
        127 => wide(&header[2..10]),
        short => u64::from(short),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(length: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut bytes = vec![0x82];
        match length {
            0..=125 => bytes.push(mask | u8::try_from(length).expect("short")),
            126..=0xffff => {
                bytes.push(mask | 126);
                bytes.extend(u16::try_from(length).expect("medium").to_be_bytes());
            }
            _ => {
                bytes.push(mask | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.extend(std::iter::repeat_n(7, length + if masked { 4 } else { 0 }));
        bytes
    }

    proptest! {
        #[test]
        fn borders_are_known_however_the_bytes_arrive(
            frames in proptest::collection::vec((prop_oneof![0usize..130, 65_530usize..65_540], any::<bool>()), 1..5),
            step in 1usize..5000,
        ) {
            let mut bytes = Vec::new();
            let mut borders = vec![0];
            for (length, masked) in frames {
                bytes.extend(frame(length, masked));
                borders.push(bytes.len());
            }
            let mut tracker = FrameTracker::default();
            let mut passed = 0;
            for piece in bytes.chunks(step) {
                tracker.passed(piece);
                passed += piece.len();
                prop_assert_eq!(tracker.between_frames(), borders.contains(&passed));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            FrameTracker::default().passed(&bytes);
        }
    }
}
