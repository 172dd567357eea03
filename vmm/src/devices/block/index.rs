//! Which of many sealed layers has a grain: one byte for each grain of a piece that more than one has touched, and
//! one for a whole piece otherwise.
//!
//! A 20 GiB disk takes 160 KiB, and 512 bytes more for each 2 MiB that are not all of one layer: a written system of
//! a few GiB takes well below 1 MiB, and the worst is 5.2 MiB. A bit for each layer and grain would take up to
//! [`MAX_LAYERS`](super::folder::MAX_LAYERS) bits where this takes 8, and a search in each layer for each read.

use super::allocation::{Bitmap, Run};

/// Grains of a piece: 2 MiB of the disk.
const PIECE: u64 = 512;

/// A sealed layer by its number from the bottom, the lowest being 1; 0 is none.
pub type Number = u8;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    All(Number),
    Each(Box<[Number; PIECE as usize]>),
}

/// For each grain, the topmost sealed layer that has it.
#[derive(Clone, Debug, Default)]
pub struct LayerIndex(Vec<Piece>);

impl LayerIndex {
    /// The layer that has the grain; 0: none.
    #[must_use]
    pub fn layer(&self, grain: u64) -> Number {
        match usize::try_from(grain / PIECE).ok().and_then(|piece| self.0.get(piece)) {
            Some(Piece::All(number)) => *number,
            Some(Piece::Each(numbers)) => numbers[(grain % PIECE) as usize],
            None => 0,
        }
    }

    /// Puts a layer on top of all others.
    pub fn put(&mut self, runs: impl IntoIterator<Item = Run>, layer: Number) {
        for run in runs {
            self.put_run(run, layer);
        }
    }

    /// As [`Self::put`], of a map in memory.
    pub fn put_bits(&mut self, bits: &Bitmap, layer: Number) {
        self.put(bits.runs(), layer);
    }

    /// All grains that a layer has, in order, as runs of neighbours of one layer.
    pub fn runs(&self) -> impl Iterator<Item = (Run, Number)> + '_ {
        let end = self.0.len() as u64 * PIECE;
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < end && self.layer(at) == 0 {
                at = self.next_change(at);
            }
            let (first, layer) = (at, self.layer(at));
            while at < end && self.layer(at) == layer {
                at = self.next_change(at);
            }
            (first < at).then_some((Run { first, count: at - first }, layer))
        })
    }

    /// A grain behind this one up to which nothing changes.
    fn next_change(&self, grain: u64) -> u64 {
        match self.0.get((grain / PIECE) as usize) {
            Some(Piece::All(_)) => (grain / PIECE + 1) * PIECE,
            Some(Piece::Each(_)) | None => grain + 1,
        }
    }

    fn put_run(&mut self, run: Run, layer: Number) {
        let end = run.first + run.count;
        let pieces = usize::try_from(end.div_ceil(PIECE)).expect("a grain of a disk");
        if self.0.len() < pieces {
            self.0.resize(pieces, Piece::All(0));
        }
        let mut at = run.first;
        while at < end {
            let stop = end.min((at / PIECE + 1) * PIECE);
            let start = (at % PIECE) as usize;
            self.0[(at / PIECE) as usize].put(start..start + (stop - at) as usize, layer);
            at = stop;
        }
    }
}

impl Piece {
    fn put(&mut self, range: std::ops::Range<usize>, layer: Number) {
        if let Self::All(number) = self {
            if *number == layer {
                return;
            }
            *self = Self::Each(Box::new([*number; PIECE as usize]));
        }
        if let Self::Each(numbers) = self {
            numbers[range].fill(layer);
            if numbers.iter().all(|number| *number == layer) {
                *self = Self::All(layer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_last_that_was_put_has_the_grain(
            puts in prop::collection::vec((0..4 * PIECE, 1..2 * PIECE, 1u8..5), 0..12),
        ) {
            let mut model = vec![0u8; 6 * PIECE as usize];
            let mut index = LayerIndex::default();
            for (first, count, layer) in puts {
                index.put([Run { first, count }], layer);
                model[first as usize..(first + count) as usize].fill(layer);
            }
            for (grain, layer) in model.iter().enumerate() {
                prop_assert_eq!(index.layer(grain as u64), *layer);
            }
            let mut from_runs = vec![0u8; model.len()];
            let mut end = 0;
            for (run, layer) in index.runs() {
                prop_assert!(run.first >= end && run.count > 0 && layer > 0);
                end = run.first + run.count;
                from_runs[run.first as usize..end as usize].fill(layer);
            }
            prop_assert_eq!(from_runs, model);
        }
    }

    #[test]
    fn an_index_of_a_large_disk_is_small() {
        let grains = (20 << 30) / crate::devices::block::allocation::GRAIN;
        let mut index = LayerIndex::default();
        index.put([Run { first: 0, count: grains }], 1);
        assert_eq!((index.0.len(), size_of::<Piece>()), (10_240, 16));
        assert!(index.0.iter().all(|piece| *piece == Piece::All(1)));
    }
}
