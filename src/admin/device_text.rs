//! What `rma exports` and `rma udev test` print.

use super::protocol::{ExportInfo, PolicyInfo, UdevTest};
use super::text::{Style, list, size};

/// The exported devices.
pub(super) fn exports(exports: &[ExportInfo], style: Style) -> String {
    let headings = [
        "NAME", "BACKEND", "PATH", "SIZE#", "STATE", "POLICY", "WHY", "GUID",
    ];
    let rows = exports
        .iter()
        .map(|e| {
            vec![
                e.name.clone(),
                e.backend.clone(),
                e.path.clone(),
                size(e.size_bytes),
                e.state.clone(),
                policy_word(e.fail_after_s),
                e.reason.clone(),
                style.guid(&e.guid),
            ]
        })
        .collect();
    let warnings = exports.iter().filter_map(|e| {
        let warning = e.warning.as_ref()?;
        Some(format!("{}: {warning}\n", e.name.escape_default()))
    });
    list(style, &headings, rows) + &warnings.collect::<String>()
}

fn policy_word(fail_after_s: Option<u32>) -> String {
    match fail_after_s {
        None => "queue".to_owned(),
        Some(seconds) => format!("fail after {seconds} s"),
    }
}

/// What becomes of a device's I/O while its unit cannot be reached.
pub(super) fn policy(info: &PolicyInfo) -> String {
    let from = if info.is_default {
        " (rmad's default)"
    } else {
        ""
    };
    format!("{}: {}{from}\n", info.name, policy_word(info.fail_after_s))
}

/// The names of a device, the rules that give them, and where they lead.
pub(super) fn udev_test(test: &UdevTest, style: Style) -> String {
    let mut text = format!(
        "{} ({}) is {}",
        test.name,
        style.guid(&test.guid),
        test.node
    );
    if test.rules_file.is_empty() {
        text.push_str("; no rules are written (udev_rules_dir)\n");
    } else {
        text.push_str(&format!(", rules in {}\n", test.rules_file));
    }
    for note in &test.notes {
        text.push_str(&format!("{note}\n"));
    }
    let rows = test
        .links
        .iter()
        .map(|link| {
            let target = match &*link.target {
                "" => "nothing",
                target => target,
            };
            let verdict = if link.is_right { "ok" } else { "WRONG" };
            vec![
                link.link.clone(),
                link.follows.clone(),
                link.line.to_string(),
                target.to_owned(),
                verdict.to_owned(),
            ]
        })
        .collect();
    text + &list(style, &["LINK", "FOLLOWS", "LINE#", "LEADS TO", ""], rows)
}
