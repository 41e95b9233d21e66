//! Planted bugs: each must be caught.

#[cfg(not(feature = "planted-bugs"))]
use std::io;

use crate::Args;

#[cfg(not(feature = "planted-bugs"))]
const MISSING: &str = "built without the feature planted-bugs (tools/sim builds with it)";

/// Lists the bugs.
#[cfg(not(feature = "planted-bugs"))]
pub(crate) fn list() -> io::Result<bool> {
    Err(io::Error::other(MISSING))
}

/// Plants bugs.
#[cfg(not(feature = "planted-bugs"))]
pub(crate) fn run(_: &Args, _: &str) -> io::Result<bool> {
    Err(io::Error::other(MISSING))
}

#[cfg(feature = "planted-bugs")]
pub(crate) use planted::{list, run};

#[cfg(feature = "planted-bugs")]
mod planted {
    use std::io::{self, Write as _};
    use std::time::Instant;

    use rma::planted::{Bug, plant};

    use super::Args;
    use crate::play::{Caught, Figures, Played, leave_frames, play_all, play_clean};
    use crate::write_json;

    /// Lists the bugs.
    pub(crate) fn list() -> io::Result<bool> {
        let mut out = io::stdout().lock();
        for (_, name) in Bug::ALL {
            writeln!(out, "{name}")?;
        }
        Ok(true)
    }

    /// Plants the bug of this name, or one after the other; whether all were caught.
    pub(crate) fn run(args: &Args, name: &str) -> io::Result<bool> {
        let bugs: Vec<_> = match (name, Bug::named(name)) {
            ("all", _) => Bug::ALL.to_vec(),
            (_, Some(bug)) => vec![(bug, known_name(bug))],
            _ => {
                let known: Vec<_> = Bug::ALL.iter().map(|(_, name)| *name).collect();
                return Err(io::Error::other(format!(
                    "there is no bug called '{name}', only {}",
                    known.join(", ")
                )));
            }
        };
        let mut figures = Figures::new(args);
        figures.planted_total = bugs.len() as u64;
        let is_well = args.seeds.is_none() || play_clean(args, &mut figures)?;
        let begin = Instant::now();
        let mut out = io::stdout().lock();
        for (bug, name) in bugs {
            let caught = catch(args, bug, name, &mut out)?;
            figures.planted_seeds += caught.seeds;
            figures.planted_caught += u64::from(caught.caught);
            match (&caught.by, caught.seed) {
                (Some(by), Some(seed)) => writeln!(
                    out,
                    "{name}: caught by seed {seed}, after {} seeds: {by}",
                    caught.seeds
                )?,
                _ => writeln!(out, "{name}: NOT CAUGHT in {} seeds", caught.seeds)?,
            }
            out.flush()?;
            figures.planted_bugs.push(caught);
        }
        write_json(args, &figures)?;
        writeln!(
            out,
            "{} of {} planted bugs caught in {:.1} s",
            figures.planted_caught,
            figures.planted_total,
            begin.elapsed().as_secs_f64()
        )?;
        Ok(is_well && figures.planted_caught == figures.planted_total)
    }

    fn known_name(bug: Bug) -> &'static str {
        let found = Bug::ALL.iter().find(|(of, _)| *of == bug);
        found.map_or("", |(_, name)| name)
    }

    fn catch(
        args: &Args,
        bug: Bug,
        name: &'static str,
        out: &mut impl io::Write,
    ) -> io::Result<Caught> {
        let mut caught = Caught {
            name,
            caught: false,
            seeds: 0,
            seed: None,
            by: None,
        };
        plant(Some(bug));
        let (first, seeds) = match args.seed {
            Some(seed) => (seed, 1),
            None => (args.first, args.break_seeds),
        };
        let outcome = play_all(args, first, seeds, |played| {
            caught.seeds += 1;
            if played.is_good() {
                return Ok(true);
            }
            caught.caught = true;
            caught.seed = Some(played.seed);
            caught.by = Some(symptom(&played));
            Ok(false)
        });
        if let (Some(seed), true) = (caught.seed, args.pcap.is_some()) {
            leave_frames(args, seed, out)?;
        }
        plant(None);
        outcome.map(|()| caught)
    }

    fn symptom(played: &Played) -> String {
        let first = played.violations.first().or(played.unconverged.as_ref());
        first.cloned().unwrap_or_default()
    }
}
