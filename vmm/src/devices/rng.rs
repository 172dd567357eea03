//! virtio-rng: the host's random numbers (virtio 1.2 section 5.4).

use super::chain::Chain;
use super::device::Progress;
use super::{Context, Counter, DeviceError, DeviceKind, DeviceState, Fault, VirtioDevice};
use rustix::rand::{GetRandomFlags, getrandom};
use std::io;

/// Size of the one queue. Linux keeps one request in flight.
const QUEUE_SIZES: &[u16] = &[64];
/// Most bytes given for one request, whatever room the driver lends: enough for any seed, and a bound for
/// what a guest can make the host's generator do.
const MAX_REQUEST: usize = 4096;

/// The device.
#[derive(Debug, Default)]
pub struct Rng {
    chain: Chain,
}

impl Rng {
    /// A device that asks the kernel's generator.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Fills one chain; returns how many bytes were written.
    fn fill(&self, ctx: &Context<'_>) -> Result<u32, Fault> {
        let mut bytes = [0u8; MAX_REQUEST];
        let want = self.chain.writable.bytes().min(MAX_REQUEST);
        if want == 0 || self.chain.readable.bytes() != 0 {
            return Err(Fault::Guest(Counter::BadDirection));
        }
        let mut have = 0;
        while have < want {
            match getrandom(&mut bytes[have..want], GetRandomFlags::empty()) {
                Ok(n) => have += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Fault::Host(io::Error::from(error))),
            }
        }
        let written = self.chain.writable.write(ctx.mem, 0, &bytes[..want]);
        let written = written.map_err(|_| Fault::Guest(Counter::BadBuffer))?;
        Ok(written as u32)
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn activate(&mut self, _features: u64) -> Result<(), DeviceError> {
        Ok(())
    }

    fn queue_event(&mut self, queue: usize, ctx: &mut Context<'_>) -> Result<Progress, Fault> {
        // One round of the queue is the bound of work: it holds as many chains as the driver can lend at once.
        for _ in 0..QUEUE_SIZES[0] {
            let Some(requests) = ctx.queues[queue].as_mut() else { return Ok(Progress::Done) };
            if !requests.pop(ctx.mem, &mut self.chain)? {
                if requests.enable_notification(ctx.mem)? {
                    continue;
                }
                ctx.signal(queue)?;
                return Ok(Progress::Done);
            }
            let written = self.fill(ctx)?;
            if let Some(requests) = ctx.queues[queue].as_mut() {
                requests.push_used(ctx.mem, self.chain.head, written)?;
            }
        }
        ctx.signal(queue)?;
        Ok(Progress::More)
    }

    fn reset(&mut self) {}

    fn save(&self) -> DeviceState {
        DeviceState::Rng
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        if *state == DeviceState::Rng { Ok(()) } else { Err(DeviceError::WrongKind) }
    }
}
