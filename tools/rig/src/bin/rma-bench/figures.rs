//! What was measured, as rows: medians over the rounds, and ratios within each round.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde_json::{Value, json};

use super::{Backend, Workload};

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(super) enum Candidate {
    /// `rma bench`: load made inside `rmad`
    Ours,
    /// fio through the owned device's NBD socket
    OursNbd,
    /// The same fio on nbdkit over TCP
    NbdkitTcp,
    /// The same fio on nbdkit over a UNIX socket
    NbdkitUnix,
    /// tgt with libiscsi over TCP
    Iscsi,
    /// vblade, asked by raw frames
    Aoe,
    /// Raw frames of the same number and sizes
    Ceiling,
}

impl Candidate {
    pub(super) const ALL: [Self; 7] = [
        Self::Ours,
        Self::OursNbd,
        Self::NbdkitTcp,
        Self::NbdkitUnix,
        Self::Iscsi,
        Self::Aoe,
        Self::Ceiling,
    ];
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "ours",
            Self::OursNbd => "ours-nbd",
            Self::NbdkitTcp => "nbdkit-tcp",
            Self::NbdkitUnix => "nbdkit-unix",
            Self::Iscsi => "iscsi",
            Self::Aoe => "aoe",
            Self::Ceiling => "ceiling",
        })
    }
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Figure {
    /// I/Os or bytes each second.
    pub(super) rate: f64,
    /// Processor time of both ends, microseconds.
    pub(super) cpu_us_per_io: Option<f64>,
    /// 99.9th percentile of the latency, microseconds.
    pub(super) p999_us: Option<f64>,
}

impl Figure {
    pub(super) fn of(workload: &Workload, iops: f64) -> Self {
        let each = if workload.is_bytes {
            f64::from(workload.bytes)
        } else {
            1.0
        };
        Self {
            rate: iops * each,
            cpu_us_per_io: None,
            p999_us: None,
        }
    }
}

/// All measurements of one workload at one MTU.
pub(super) struct Row {
    workload: &'static str,
    mtu: u16,
    backend: Backend,
    is_bytes: bool,
    figures: BTreeMap<Candidate, Vec<Figure>>,
}

impl Row {
    pub(super) const HEADING: &'static str = "WORKLOAD                            MTU BACKEND        OURS    OURS NBD  NBDKIT TCP NBDKIT UNIX       ISCSI         AOE     CEILING     /TCP /CEILING   CPU US CPU/TCP  P999 US P999/TCP";

    pub(super) fn new(workload: &Workload, mtu: u16, backend: Backend) -> Self {
        Self {
            workload: workload.name,
            mtu,
            backend,
            is_bytes: workload.is_bytes,
            figures: BTreeMap::new(),
        }
    }

    pub(super) fn add(&mut self, candidate: Candidate, figure: Figure) {
        self.figures.entry(candidate).or_default().push(figure);
    }

    fn all(&self, of: Candidate, part: impl Fn(&Figure) -> Option<f64>) -> Vec<f64> {
        let figures = self.figures.get(&of).into_iter().flatten();
        figures.filter_map(part).collect()
    }

    pub(super) const fn mtu(&self) -> u16 {
        self.mtu
    }

    pub(super) const fn backend(&self) -> Backend {
        self.backend
    }

    pub(super) const fn workload(&self) -> &'static str {
        self.workload
    }

    /// A rate as people read it.
    pub(super) fn shown(&self, rate: f64) -> String {
        if self.is_bytes {
            format!("{:.0} MB/s", rate / 1e6)
        } else {
            format!("{:.1} k/s", rate / 1e3)
        }
    }

    pub(super) const MARKDOWN_HEADING: &'static str = "| workload | ours | ours NBD | nbdkit TCP | nbdkit UNIX | iSCSI | AoE | ceiling | of TCP | of the ceiling | CPU us | CPU of TCP | p99.9 us | p99.9 of TCP |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n";

    pub(super) fn markdown(&self) -> String {
        let mut line = format!("| {} |", self.workload);
        for candidate in Candidate::ALL {
            let rate = self.rate(candidate);
            let _ = write!(
                line,
                " {} |",
                rate.map_or("-".to_owned(), |r| self.shown(r))
            );
        }
        for number in self.numbers() {
            let _ = write!(
                line,
                " {} |",
                number.map_or("-".to_owned(), |n| format!("{n:.2}"))
            );
        }
        line.push('\n');
        line
    }

    /// Ratios to nbdkit over TCP and to the ceiling, processor time and its ratio, p99.9 and its ratio.
    fn numbers(&self) -> [Option<f64>; 6] {
        use Candidate::{Ceiling, NbdkitTcp, Ours};
        let rate = |figure: &Figure| Some(figure.rate);
        [
            median(self.ratio(Ours, NbdkitTcp, rate)),
            median(self.ratio(Ours, Ceiling, rate)),
            median(self.all(Ours, |f| f.cpu_us_per_io)),
            median(self.ratio(Ours, NbdkitTcp, |f| f.cpu_us_per_io)),
            median(self.all(Ours, |f| f.p999_us)),
            median(self.ratio(Ours, NbdkitTcp, |f| f.p999_us)),
        ]
    }

    pub(super) fn rate(&self, of: Candidate) -> Option<f64> {
        median(self.all(of, |f| Some(f.rate)))
    }

    /// The median over the rounds of ours by theirs.
    fn ratio(
        &self,
        ours: Candidate,
        theirs: Candidate,
        part: impl Fn(&Figure) -> Option<f64>,
    ) -> Vec<f64> {
        let (ours, theirs) = (self.all(ours, &part), self.all(theirs, &part));
        let pairs = ours
            .iter()
            .zip(&theirs)
            .filter(|(_, theirs)| **theirs > 0.0);
        pairs.map(|(ours, theirs)| ours / theirs).collect()
    }

    pub(super) fn to_json(&self) -> Value {
        use Candidate::{Aoe, Ceiling, Iscsi, NbdkitTcp, NbdkitUnix, Ours, OursNbd};
        let rate = |f: &Figure| Some(f.rate);
        let spread = |values: &[f64]| {
            let least = values.iter().copied().reduce(f64::min)?;
            let most = values.iter().copied().reduce(f64::max)?;
            Some([least, most])
        };
        let of_tcp = self.ratio(Ours, NbdkitTcp, rate);
        json!({
            "workload": self.workload,
            "mtu": self.mtu,
            "backend": self.backend.to_string(),
            "unit": if self.is_bytes { "bytes/s" } else { "io/s" },
            "ours": self.rate(Ours),
            "ours_nbd": self.rate(OursNbd),
            "nbdkit_tcp": self.rate(NbdkitTcp),
            "nbdkit_unix": self.rate(NbdkitUnix),
            "iscsi": self.rate(Iscsi),
            "aoe": self.rate(Aoe),
            "ceiling": self.rate(Ceiling),
            "ratio_nbdkit_tcp_spread": spread(&of_tcp),
            "ratio_nbdkit_tcp": median(of_tcp),
            "ratio_ceiling": median(self.ratio(Ours, Ceiling, rate)),
            "cpu_us_per_io": median(self.all(Ours, |f| f.cpu_us_per_io)),
            "cpu_ratio": median(self.ratio(Ours, NbdkitTcp, |f| f.cpu_us_per_io)),
            "p999_us": median(self.all(Ours, |f| f.p999_us)),
            "p999_ratio": median(self.ratio(Ours, NbdkitTcp, |f| f.p999_us)),
        })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<34} {:>4} {:<7}",
            self.workload,
            self.mtu,
            self.backend.to_string()
        )?;
        for candidate in Candidate::ALL {
            let rate = self.rate(candidate);
            write!(f, " {:>11}", rate.map_or("-".to_owned(), |r| self.shown(r)))?;
        }
        for number in self.numbers() {
            write!(
                f,
                " {:>8}",
                number.map_or("-".to_owned(), |n| format!("{n:.2}"))
            )?;
        }
        Ok(())
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
