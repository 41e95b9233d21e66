//! A load generator for one device: which I/O comes next, and how long each took. Pure; its user
//! submits what it draws to an [`Initiator`](super::Initiator) and tells it what is done.

use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{Io, IoError, IoOp, MAX_IO_BYTES};
use crate::wire::Time;

/// The most I/Os under way at a time.
pub const MAX_DEPTH: u32 = 1024;
/// The longest run.
pub const MAX_SECONDS: u32 = 24 * 3600;
/// Latencies are kept up to this many nanoseconds; longer ones count as this.
pub(super) const MAX_LATENCY_NS: u64 = 3_600_000_000_000;
/// Percentiles that a report has.
const PERCENTILES: [f64; 6] = [50.0, 90.0, 95.0, 99.0, 99.9, 99.99];

/// The order of offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// One after the other, and from the front again.
    Sequential,
    /// Any block, drawn anew each time.
    Random,
}

/// What load to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadSpec {
    /// The order of offsets.
    pub order: Order,
    /// How many of 100 I/Os are reads; the others are writes.
    pub read_percent: u8,
    /// Bytes of each I/O.
    pub block_bytes: u32,
    /// I/Os under way at a time.
    pub depth: u32,
    /// How long I/O is begun, seconds.
    pub seconds: u32,
    /// How long before that load is made without being measured, seconds.
    pub ramp_seconds: u32,
    /// First byte of the range used.
    pub offset: u64,
    /// Bytes of the range used; 0: to the device's end.
    pub size: u64,
    /// Whether writes are durable when they are done.
    pub fua: bool,
}

impl LoadSpec {
    /// What a user would have to change, in one line; nothing where it can be run on a device of
    /// this size and block size.
    pub fn mistake(&self, size_bytes: u64, device_block_bytes: u32) -> Option<String> {
        let block = u64::from(self.block_bytes);
        let end = self.offset.checked_add(self.size);
        if block == 0 || !block.is_multiple_of(device_block_bytes.max(1).into()) {
            Some(format!(
                "a block of {block} bytes is not a multiple of the device's {device_block_bytes}"
            ))
        } else if block > MAX_IO_BYTES {
            Some(format!(
                "a block of {block} bytes is over {MAX_IO_BYTES}, the longest I/O"
            ))
        } else if !(1..=MAX_DEPTH).contains(&self.depth) {
            Some(format!(
                "the depth {} is not from 1 to {MAX_DEPTH}",
                self.depth
            ))
        } else if self.read_percent > 100 {
            Some(format!("{} % reads are over 100 %", self.read_percent))
        } else if self.seconds == 0 || self.seconds > MAX_SECONDS || self.ramp_seconds > MAX_SECONDS
        {
            Some(format!("a run lasts from 1 to {MAX_SECONDS} seconds"))
        } else if !self.offset.is_multiple_of(device_block_bytes.max(1).into()) {
            Some(format!(
                "the offset {} is not a multiple of the device's blocks of {device_block_bytes} bytes",
                self.offset
            ))
        } else if end.is_none_or(|end| end > size_bytes) || self.range_bytes(size_bytes) < block {
            Some(format!(
                "the range does not fit: the device has {size_bytes} bytes, a block {block}"
            ))
        } else {
            None
        }
    }

    fn range_bytes(&self, size_bytes: u64) -> u64 {
        match self.size {
            0 => size_bytes.saturating_sub(self.offset),
            size => size,
        }
    }
}

/// Latencies of one kind of I/O, nanoseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    /// How many I/Os.
    pub count: u64,
    /// The shortest.
    pub min_ns: u64,
    /// Their mean.
    pub mean_ns: f64,
    /// The longest.
    pub max_ns: u64,
    /// Percentile and latency.
    pub percentiles_ns: Vec<(f64, u64)>,
}

/// How a run goes or went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Seconds measured so far.
    pub seconds: f64,
    /// I/Os done and measured.
    pub ios: u64,
    /// Their bytes.
    pub bytes: u64,
    /// I/Os that failed.
    pub errors: u64,
    /// Why the first failed; empty where none has.
    pub first_error: String,
    /// Reads, if there were any.
    pub reads: Option<Latencies>,
    /// Writes, if there were any.
    pub writes: Option<Latencies>,
}

impl LoadReport {
    /// I/Os each second.
    pub fn iops(&self) -> f64 {
        self.ios as f64 / self.seconds.max(1e-9)
    }

    /// Bytes each second.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds.max(1e-9)
    }
}

/// An I/O under way.
#[derive(Debug, Clone, Copy)]
struct Begun {
    at: Time,
    is_read: bool,
}

/// A load on one device.
#[derive(Debug)]
pub struct Load {
    spec: LoadSpec,
    /// Blocks of the range.
    blocks: u64,
    rng: fastrand::Rng,
    next: u64,
    /// What written blocks hold, and what reads have.
    pattern: Arc<Vec<u8>>,
    nothing: Arc<Vec<u8>>,
    slots: Vec<Option<Begun>>,
    free: Vec<u32>,
    measured_from: Time,
    until: Time,
    last_done: Time,
    bytes: u64,
    errors: u64,
    first_error: Option<IoError>,
    reads: Histogram<u64>,
    writes: Histogram<u64>,
}

impl Load {
    /// A load that begins at `now` on a device of `size_bytes`; the specification has no
    /// [mistake](LoadSpec::mistake).
    pub fn new(now: Time, spec: LoadSpec, size_bytes: u64, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let block = u64::from(spec.block_bytes.max(1));
        let pattern: Vec<u8> = std::iter::repeat_with(|| rng.u8(..))
            .take(spec.block_bytes as usize)
            .collect();
        let depth = spec.depth.clamp(1, MAX_DEPTH);
        let measured_from = now + Duration::from_secs(spec.ramp_seconds.into());
        Self {
            blocks: (spec.range_bytes(size_bytes) / block).max(1),
            rng,
            next: 0,
            pattern: Arc::new(pattern),
            nothing: Arc::default(),
            slots: vec![None; depth as usize],
            free: (0..depth).rev().collect(),
            measured_from,
            until: measured_from + Duration::from_secs(spec.seconds.into()),
            last_done: measured_from,
            bytes: 0,
            errors: 0,
            first_error: None,
            reads: histogram(),
            writes: histogram(),
            spec,
        }
    }

    /// The next I/O and the number under which its end is to be told; nothing while the depth is
    /// used up or the time is over.
    pub fn next(&mut self, now: Time) -> Option<(u32, Io)> {
        if now >= self.until {
            return None;
        }
        let slot = self.free.pop()?;
        let block = match self.spec.order {
            Order::Random => self.rng.u64(..self.blocks),
            Order::Sequential => {
                let block = self.next;
                self.next = (block + 1) % self.blocks;
                block
            }
        };
        let is_read = self.spec.read_percent == 100
            || (self.spec.read_percent > 0 && self.rng.u8(..100) < self.spec.read_percent);
        let len = u64::from(self.spec.block_bytes);
        self.slots[slot as usize] = Some(Begun { at: now, is_read });
        let io = Io {
            op: if is_read { IoOp::Read } else { IoOp::Write },
            offset: self.spec.offset + block * len,
            len,
            data: Arc::clone(if is_read {
                &self.nothing
            } else {
                &self.pattern
            }),
            fua: !is_read && self.spec.fua,
        };
        Some((slot, io))
    }

    /// An I/O has ended.
    pub fn done(&mut self, now: Time, slot: u32, result: Result<(), IoError>) {
        let Some(begun) = self.slots.get_mut(slot as usize).and_then(Option::take) else {
            return;
        };
        self.free.push(slot);
        if let Err(error) = result {
            self.errors += 1;
            self.first_error.get_or_insert(error);
            // A device that refuses everything is not asked for ever.
            self.until = self.until.min(now);
            return;
        }
        if begun.at < self.measured_from {
            return;
        }
        self.last_done = now;
        self.bytes += u64::from(self.spec.block_bytes);
        let nanos = u64::try_from(now.since(begun.at).as_nanos()).unwrap_or(MAX_LATENCY_NS);
        let latencies = if begun.is_read {
            &mut self.reads
        } else {
            &mut self.writes
        };
        latencies.saturating_record(nanos);
    }

    /// Whether the time is over and nothing is under way.
    pub fn is_over(&self, now: Time) -> bool {
        now >= self.until && self.is_idle()
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// How it goes.
    pub fn report(&self) -> LoadReport {
        LoadReport {
            seconds: self.last_done.since(self.measured_from).as_secs_f64(),
            ios: self.reads.len() + self.writes.len(),
            bytes: self.bytes,
            errors: self.errors,
            first_error: self.first_error.map(|e| e.to_string()).unwrap_or_default(),
            reads: latencies(&self.reads),
            writes: latencies(&self.writes),
        }
    }
}

/// Latencies up to an hour, to one in a hundred: more digits are a table that is in no cache when it is written to.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_LATENCY_NS, 2).expect("constant bounds, in order")
}

pub(super) fn latencies(of: &Histogram<u64>) -> Option<Latencies> {
    (!of.is_empty()).then(|| Latencies {
        count: of.len(),
        min_ns: of.min(),
        mean_ns: of.mean(),
        max_ns: of.max(),
        percentiles_ns: PERCENTILES
            .iter()
            .map(|p| (*p, of.value_at_percentile(*p)))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Time {
        Time::from_nanos(n * 1_000_000)
    }

    fn spec() -> LoadSpec {
        LoadSpec {
            order: Order::Sequential,
            read_percent: 100,
            block_bytes: 4096,
            depth: 2,
            seconds: 1,
            ramp_seconds: 1,
            offset: 8192,
            size: 12288,
            fua: false,
        }
    }

    #[test]
    fn the_depth_is_kept_and_the_range_goes_round() {
        let mut load = Load::new(ms(0), spec(), 1 << 20, 1);
        let mut offsets = Vec::new();
        for at in 0..5 {
            let (first, io) = load.next(ms(at)).unwrap();
            offsets.push(io.offset);
            let (second, io) = load.next(ms(at)).unwrap();
            offsets.push(io.offset);
            assert!(load.next(ms(at)).is_none(), "the depth is used up");
            load.done(ms(at), second, Ok(()));
            load.done(ms(at), first, Ok(()));
        }
        assert_eq!(offsets[..4], [8192, 12288, 16384, 8192]);
    }

    #[test]
    fn only_what_begins_after_the_ramp_counts_and_what_is_under_way_is_awaited() {
        let mut load = Load::new(ms(0), spec(), 1 << 20, 1);
        let (early, _) = load.next(ms(999)).unwrap();
        load.done(ms(1500), early, Ok(()));
        let (slot, _) = load.next(ms(1500)).unwrap();
        load.done(ms(1600), slot, Ok(()));
        let (late, _) = load.next(ms(1999)).unwrap();
        assert!(load.next(ms(2000)).is_none() && !load.is_over(ms(2000)));
        load.done(ms(2100), late, Ok(()));
        assert!(load.is_over(ms(2100)));
        let report = load.report();
        assert_eq!((report.ios, report.bytes, report.errors), (2, 8192, 0));
        assert!((report.seconds - 1.1).abs() < 1e-9, "{report:?}");
        let reads = report.reads.unwrap();
        assert_eq!(reads.count, 2);
        assert!(reads.max_ns.abs_diff(101_000_000) < 200_000, "{reads:?}");
        assert_eq!(report.writes, None);
    }

    #[test]
    fn an_error_is_told_and_ends_the_run() {
        let mut load = Load::new(ms(0), spec(), 1 << 20, 1);
        let (slot, _) = load.next(ms(5)).unwrap();
        load.done(ms(6), slot, Err(IoError::Closed));
        assert!(load.next(ms(7)).is_none() && load.is_over(ms(7)));
        let report = load.report();
        assert_eq!((report.errors, report.ios), (1, 0));
        assert_eq!(report.first_error, "the device is closed");
    }

    #[test]
    fn reads_and_writes_mix_as_asked_inside_the_range() {
        let mixed = LoadSpec {
            order: Order::Random,
            read_percent: 70,
            ..spec()
        };
        let mut load = Load::new(ms(0), mixed, 1 << 20, 7);
        let mut reads = 0;
        for _ in 0..1000 {
            let (slot, io) = load.next(ms(1)).unwrap();
            assert!((8192..=16384).contains(&io.offset) && io.offset % 4096 == 0);
            assert_eq!(io.op == IoOp::Write, io.data.len() == 4096);
            reads += u32::from(io.op == IoOp::Read);
            load.done(ms(1), slot, Ok(()));
        }
        assert!((600..800).contains(&reads), "{reads}");
    }

    #[test]
    fn mistakes_are_one_line() {
        let of = |change: fn(&mut LoadSpec)| {
            let mut spec = spec();
            change(&mut spec);
            spec.mistake(1 << 20, 512)
        };
        assert_eq!(of(|_| ()), None);
        assert!(of(|s| s.block_bytes = 1000).unwrap().contains("512"));
        assert!(of(|s| s.block_bytes = 0).is_some());
        assert!(of(|s| s.depth = 0).is_some());
        assert!(of(|s| s.depth = MAX_DEPTH + 1).is_some());
        assert!(of(|s| s.seconds = 0).is_some());
        assert!(of(|s| s.read_percent = 101).is_some());
        assert!(of(|s| s.offset = u64::MAX - 511).is_some());
        assert!(of(|s| s.size = 1 << 20).unwrap().contains("1048576"));
        assert!(of(|s| s.size = 2048).is_some());
        assert!(of(|s| s.offset = 100).is_some());
    }
}
