//! What has been done on a device since it was opened: counts, bytes and latencies.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::IoOp;
use super::load::{Latencies, MAX_LATENCY_NS, latencies};

/// I/Os of one kind on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpReport {
    /// I/Os done.
    pub ios: u64,
    /// Their bytes.
    pub bytes: u64,
    /// I/Os that failed.
    pub errors: u64,
    /// From being asked for to being done, if there were any; percentiles within 7 %.
    pub latency: Option<Latencies>,
}

/// What has been done on a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// Reads.
    pub reads: OpReport,
    /// Writes.
    pub writes: OpReport,
    /// Flushes, discards and write-zeroes.
    pub others: OpReport,
}

#[derive(Debug)]
struct OpStats {
    bytes: u64,
    errors: u64,
    latencies: Histogram<u64>,
}

impl OpStats {
    fn new() -> Self {
        Self {
            bytes: 0,
            errors: 0,
            // A few kilobytes: there are many devices.
            latencies: Histogram::new_with_bounds(1, MAX_LATENCY_NS, 1)
                .expect("constant bounds, in order"),
        }
    }

    fn report(&self) -> OpReport {
        OpReport {
            ios: self.latencies.len(),
            bytes: self.bytes,
            errors: self.errors,
            latency: latencies(&self.latencies),
        }
    }
}

/// Counters of an open device.
#[derive(Debug)]
pub(super) struct DeviceStats {
    reads: OpStats,
    writes: OpStats,
    others: OpStats,
}

impl DeviceStats {
    pub(super) fn new() -> Self {
        Self {
            reads: OpStats::new(),
            writes: OpStats::new(),
            others: OpStats::new(),
        }
    }

    /// Counts an I/O that has ended.
    pub(super) fn count(&mut self, op: IoOp, bytes: u64, took: Duration, ok: bool) {
        let stats = match op {
            IoOp::Read => &mut self.reads,
            IoOp::Write => &mut self.writes,
            IoOp::Flush | IoOp::Discard | IoOp::WriteZeroes => &mut self.others,
        };
        if ok {
            stats.bytes = stats.bytes.saturating_add(bytes);
            let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            stats.latencies.saturating_record(nanos.max(1));
        } else {
            stats.errors = stats.errors.saturating_add(1);
        }
    }

    pub(super) fn report(&self) -> DeviceReport {
        DeviceReport {
            reads: self.reads.report(),
            writes: self.writes.report(),
            others: self.others.report(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_counted_on_its_own() {
        let mut stats = DeviceStats::new();
        for n in 1..=1000 {
            stats.count(IoOp::Read, 4096, Duration::from_micros(n), true);
        }
        stats.count(IoOp::Write, 512, Duration::ZERO, true);
        stats.count(IoOp::Write, 512, Duration::MAX, false);
        stats.count(IoOp::Discard, 1 << 30, Duration::from_secs(1), true);
        let report = stats.report();
        assert_eq!((report.reads.ios, report.reads.bytes), (1000, 4_096_000));
        assert_eq!((report.writes.ios, report.writes.errors), (1, 1));
        assert_eq!((report.others.ios, report.others.bytes), (1, 1 << 30));
        let latency = report.reads.latency.unwrap();
        let (percentile, median) = latency.percentiles_ns[0];
        assert!(
            (percentile - 50.0).abs() < 0.01 && (465_000..540_000).contains(&median),
            "{median}"
        );
    }
}
