//! The allocation lease as a person reads it.

use std::fmt::Write as _;

use super::text::{Style, list, printable, span};
use crate::rma::request::{HolderInfo, LockInfo, NameInfo};

/// The whole text about the lease.
pub(super) fn lock(info: &LockInfo, style: Style) -> String {
    let mut out = match &info.holder {
        None => format!("free, highest term {}\n", info.highest_term),
        Some(holder) => format!(
            "held by {} for {}, term {}\n{}\n",
            printable(&who(holder)),
            span(holder.held_ms),
            holder.term,
            until(holder)
        ),
    };
    if info.voters.is_empty() {
        return out;
    }
    let _ = writeln!(
        out,
        "{} of {} hosts and units answered, {} make a majority",
        info.voters
            .iter()
            .filter(|v| v.answer != "no answer")
            .count(),
        info.voter_count,
        info.majority
    );
    let rows = info
        .voters
        .iter()
        .map(|v| {
            vec![
                name(&v.voter),
                v.entity.clone(),
                v.answer.clone(),
                v.promised.to_string(),
                v.holder
                    .as_ref()
                    .map_or_else(|| "-".to_owned(), |h| name(&h.host)),
                if v.left_ms == 0 {
                    "-".to_owned()
                } else {
                    span(v.left_ms)
                },
                style.guid(&v.voter.guid),
            ]
        })
        .collect();
    let headings = [
        "VOTER",
        "TYPE",
        "ANSWER",
        "PROMISED#",
        "GRANTED TO",
        "FOR",
        "GUID",
    ];
    out.push_str(&list(style, &headings, rows));
    out
}

fn name(info: &NameInfo) -> String {
    if info.name.is_empty() {
        info.guid.clone()
    } else {
        info.name.clone()
    }
}

fn who(holder: &HolderInfo) -> String {
    let mut text = format!("host {}", name(&holder.host));
    if holder.here {
        text.push_str(" (this host)");
    }
    if holder.process != 0 {
        let _ = write!(text, ", process {}", holder.process);
    }
    if !holder.user.is_empty() {
        let _ = write!(text, ", user {}", holder.user);
    }
    text
}

fn until(holder: &HolderInfo) -> &'static str {
    if holder.purpose == "administrator" {
        "kept until `rma lock release`, or 6 s after rmad has stopped on that host"
    } else {
        "for changes on their way; it ends 2 s after them, or as soon as another host asks"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rma::request::VoterInfo;

    #[test]
    fn the_holder_and_every_voter_are_named() {
        let host = NameInfo {
            guid: "00000000-0000-0000-0000-000000000108".into(),
            name: "h1\n08".into(),
        };
        let holder = HolderInfo {
            host: host.clone(),
            here: true,
            purpose: "administrator".into(),
            process: 4711,
            user: "root".into(),
            term: 7,
            held_ms: 180_000,
            left_ms: 5_000,
        };
        let voter = |answer: &str, holder: Option<HolderInfo>| VoterInfo {
            voter: host.clone(),
            entity: "host".into(),
            answer: answer.into(),
            promised: 7,
            left_ms: 5_000,
            holder,
        };
        let mut info = LockInfo {
            holder: Some(holder.clone()),
            changed: false,
            highest_term: 7,
            voter_count: 2,
            majority: 2,
            voters: vec![voter("ok", Some(holder)), voter("no answer", None)],
        };
        let text = lock(&info, Style::default());
        for words in [
            "held by host h1\\n08 (this host), process 4711, user root for 3 min, term 7\n",
            "`rma lock release`",
            "1 of 2 hosts and units answered, 2 make a majority\n",
            "no answer",
        ] {
            assert!(text.contains(words), "'{words}' is not in {text}");
        }
        info.holder = None;
        info.voters.clear();
        assert_eq!(lock(&info, Style::default()), "free, highest term 7\n");
    }
}
