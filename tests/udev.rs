//! The generated udev rules: golden files under `udev/golden`, a syntax check of our own, names that
//! try to inject, and udev itself where it is installed.
//!
//! `RMA_UPDATE_GOLDEN=1 cargo test --test udev` rewrites the golden files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use rma::export::udev::{Access, AccountName, KernelName, Node, OwnedDevice, rules};
use rma::wire::{Address, Guid, IocNumber, IodNumber, Mac};

fn address(unit: u8, ioc: u16, iod: u16) -> Address {
    Address {
        mac: Mac([2, 0, 0, 0, 0, unit]),
        ioc: IocNumber(ioc),
        iod: IodNumber(iod),
        extent: None,
    }
}

fn device(number: u8, name: &str, node: Node) -> OwnedDevice {
    OwnedDevice {
        guid: Guid(0x1d00_0000_0000_4000_8000_0000_0000_0000 + u128::from(number)),
        addresses: vec![address(0x10, 1, u16::from(number))],
        name: name.to_owned(),
        vendor: "Example".to_owned(),
        model: "Virtual Disk 9".to_owned(),
        serial: format!("SN{number:04}"),
        unit: "box".to_owned(),
        controller: "c1".to_owned(),
        shared: false,
        read_only: false,
        node,
    }
}

fn kernel(name: &str) -> Node {
    Node::Kernel(KernelName::new(name).unwrap())
}

fn no_access() -> Access {
    Access {
        owner: None,
        group: None,
        mode: None,
    }
}

fn disk_access() -> Access {
    Access {
        owner: AccountName::new("root"),
        group: AccountName::new("disk"),
        mode: Some(0o660),
    }
}

/// Names that would do harm if they reached a rule as they are.
const HOSTILE: &[&str] = &[
    "a\", RUN+=\"/bin/sh -c evil",
    "line\nKERNEL==\"*\", MODE=\"0666\"",
    "carriage\rreturn\0null\ttab",
    "ends in a backslash\\",
    "\\\"",
    "%n$kernel$env{PATH}%%$$",
    "../../../etc/passwd",
    "..",
    ".hidden",
    "glob*?[a-z]|{x}",
    "# comment",
    "two  spaces ",
    "größe-磁盘",
    "right-to-left \u{202e}gpj.exe \u{200b}\u{2028}",
    "taken-part1",
    "'single' `quotes`",
    "e\"escaped\\n\"",
    "\\x20",
];

fn hostile_device(number: u8, text: &str) -> OwnedDevice {
    let text = text.to_owned();
    OwnedDevice {
        vendor: text.clone(),
        model: text.clone(),
        serial: text.clone(),
        unit: text.clone(),
        controller: text.clone(),
        ..device(number, &text, kernel(&format!("ublkb{number}")))
    }
}

fn golden_cases() -> Vec<(&'static str, Vec<OwnedDevice>, Access)> {
    let socket = |name: &str| Node::Socket(PathBuf::from(format!("/run/rma/nbd/{name}.sock")));
    let two_nics = OwnedDevice {
        addresses: vec![address(0x10, 2, 1), address(0x11, 2, 1)],
        shared: true,
        ..device(2, "logs", kernel("nbd12"))
    };
    let range = OwnedDevice {
        addresses: vec!["02:00:00:00:00:10/1/3@1048576+8388608".parse().unwrap()],
        read_only: true,
        serial: String::new(),
        ..device(3, "", kernel("rma-a"))
    };
    let hostile = (1..).zip(HOSTILE).map(|(n, text)| hostile_device(n, text));
    vec![
        ("none", Vec::new(), disk_access()),
        (
            "sockets",
            vec![
                device(2, "logs", socket("logs")),
                device(1, "data", socket("data")),
                device(3, "data", Node::Socket("/run/odd\nplace\\".into())),
            ],
            disk_access(),
        ),
        (
            "kernel",
            vec![
                device(1, "data", kernel("ublkb0")),
                two_nics,
                range,
                device(4, "data", socket("data")),
            ],
            disk_access(),
        ),
        (
            "same-names",
            vec![
                device(1, "data", kernel("ublkb1")),
                device(2, "other", kernel("ublkb2")),
                device(3, "data", kernel("ublkb3")),
            ],
            no_access(),
        ),
        ("hostile", hostile.collect(), no_access()),
    ]
}

#[test]
fn rules_are_the_golden_ones() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("udev/golden");
    let mut expected = BTreeSet::new();
    for (name, mut devices, access) in golden_cases() {
        let text = rules(&devices, &access);
        devices.reverse();
        assert_eq!(text, rules(&devices, &access), "the order of rows matters");
        let path = dir.join(format!("{name}.rules"));
        if std::env::var_os("RMA_UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            text == golden,
            "{} differs; RMA_UPDATE_GOLDEN=1 rewrites it. Now:\n{text}",
            path.display()
        );
        expected.insert(path);
    }
    let present = std::fs::read_dir(&dir).unwrap().map(|f| f.unwrap().path());
    assert_eq!(present.collect::<BTreeSet<_>>(), expected);
}

/// `KEY{attribute} operator "value"`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    key: String,
    op: String,
    value: String,
}

/// The rules of a text, one vector of tokens for each line that is not a comment.
fn parse(text: &str) -> Result<Vec<Vec<Token>>, String> {
    let mut out = Vec::new();
    for line in text.lines() {
        if line.bytes().any(|b| b.is_ascii_control()) || line.ends_with('\\') || line.len() > 1000 {
            return Err(format!("control character, continuation or length: {line}"));
        }
        if !line.is_empty() && !line.starts_with("# ") {
            out.push(parse_line(line).ok_or_else(|| format!("not a rule: {line}"))?);
        }
    }
    Ok(out)
}

fn parse_line(line: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = line;
    loop {
        let at = rest.find(['=', '!', '+', ':'])?;
        let (key, after) = rest.split_at(at);
        let name_len = key.find('{').unwrap_or(key.len());
        let (name, attribute) = key.split_at(name_len);
        let inner = attribute
            .strip_prefix('{')
            .and_then(|a| a.strip_suffix('}'));
        let good = |c: char| c.is_ascii_alphanumeric() || "_.".contains(c);
        if name.is_empty()
            || !name.chars().all(|c| c.is_ascii_uppercase())
            || !(attribute.is_empty() || inner.is_some_and(|a| a.chars().all(good)))
        {
            return None;
        }
        let op = ["==", "!=", "+=", ":=", "="]
            .into_iter()
            .find(|op| after.starts_with(op))?;
        let (value, after) = after[op.len()..].strip_prefix('"')?.split_once('"')?;
        tokens.push(Token {
            key: key.to_owned(),
            op: op.to_owned(),
            value: value.to_owned(),
        });
        match after.strip_prefix(", ") {
            Some(more) => rest = more,
            None if after.is_empty() => return Some(tokens),
            None => return None,
        }
    }
}

/// What udev's `\x` encoding says.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if let [b'\\', b'x', high, low, tail @ ..] = rest {
            let hex = [*high, *low];
            let hex = std::str::from_utf8(&hex).unwrap();
            bytes.push(u8::from_str_radix(hex, 16).unwrap());
            rest = tail;
        } else {
            assert_ne!(*first, b'\\', "stray backslash in {text}");
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// Checks everything that a text of ours may and may not hold, whatever the names were.
fn check(text: &str, devices: &[OwnedDevice]) {
    let rules = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let mut labels = Vec::new();
    let mut gotos = Vec::new();
    let mut links = Vec::new();
    let mut names = Vec::new();
    for rule in &rules {
        for Token { key, op, value } in rule {
            match (key.as_str(), op.as_str()) {
                ("GOTO", "=") => gotos.push(value.clone()),
                ("LABEL", "=") => labels.push(value.clone()),
                // What a disk's own content says is encoded by udev.
                ("SYMLINK", "+=") if value.ends_with("_ENC}") || value.ends_with("_UUID}") => {
                    let (place, _) = value.split_once("/$env{ID_").unwrap();
                    assert!(["disk/by-uuid", "disk/by-label", "disk/by-partuuid"].contains(&place));
                    continue;
                }
                ("ENV{ID_FS_USAGE}", "==") => {
                    assert!(value.starts_with("filesystem|other"));
                    continue;
                }
                (
                    "ENV{ID_FS_UUID_ENC}" | "ENV{ID_FS_LABEL_ENC}" | "ENV{ID_PART_ENTRY_UUID}",
                    "==",
                ) => {
                    assert_eq!(value, "?*");
                    continue;
                }
                ("OPTIONS", "+=") => assert_eq!(value, "watch"),
                ("IMPORT{builtin}", "=") => assert_eq!(value, "blkid"),
                ("ATTR{size}", "==") | ("ENV{SYSTEMD_READY}", "=") => assert_eq!(value, "0"),
                ("ENV{DEVTYPE}", "==") if value == "disk" => {}
                ("SYMLINK", "+=") => {
                    let link = value.strip_suffix("$env{.RMA_PART}").unwrap();
                    let places = [
                        "disk/by-id/",
                        "rma/by-guid/",
                        "rma/by-path/",
                        "rma/by-name/",
                    ];
                    let place = places.iter().find(|p| link.starts_with(**p)).unwrap();
                    let depth = if *place == "rma/by-path/" { 4 } else { 2 };
                    let components: Vec<_> = link.split('/').collect();
                    assert_eq!(components.len(), depth + 1, "{link}");
                    for component in components {
                        assert!(
                            !component.is_empty() && !component.starts_with('.'),
                            "{link}"
                        );
                        assert!(component.len() + "-part999".len() <= 255, "{link}");
                    }
                    assert!(!link.contains([' ', '$', '%']), "{link}");
                    links.push(link.to_owned());
                    continue;
                }
                ("ENV{.RMA_PART}", "=") => {
                    assert_eq!(value, "-part%n");
                    continue;
                }
                ("KERNEL", "!=") => {
                    assert_eq!(value.matches('*').count(), 1);
                    continue;
                }
                (key, "=") if key.starts_with("ENV{ID_") => {
                    assert!(!value.contains(' '), "{value}");
                    if key == "ENV{ID_RMA_NAME_ENC}" {
                        names.push(decoded(value));
                    }
                }
                ("SUBSYSTEM", "!=") => assert_eq!(value, "block"),
                ("ACTION", "==") => assert_eq!(value, "remove"),
                ("ENV{DEVTYPE}", "==") => assert_eq!(value, "partition"),
                ("TAG", "+=") => assert_eq!(value, "systemd"),
                ("OWNER" | "GROUP" | "MODE", "=") => {}
                other => panic!("unexpected {other:?}"),
            }
            assert!(
                !value.contains(['$', '%', '*', '?', '[', '|']),
                "{key}{op}{value}"
            );
        }
    }
    for goto in &gotos {
        assert_eq!(labels.iter().filter(|l| *l == goto).count(), 1, "{goto}");
    }
    assert!(labels.iter().all(|l| gotos.contains(l)));
    let distinct: BTreeSet<_> = links.iter().collect();
    assert_eq!(distinct.len(), links.len(), "one link for two devices");
    let mut kernel: Vec<_> = devices
        .iter()
        .filter(|d| matches!(d.node, Node::Kernel(_)) && !d.name.is_empty())
        .collect();
    kernel.sort_by_key(|d| d.guid);
    assert!(kernel.iter().map(|d| &d.name).eq(&names), "{names:?}");
}

#[test]
fn every_golden_text_is_well_formed() {
    for (_, devices, access) in golden_cases() {
        check(&rules(&devices, &access), &devices);
    }
}

#[test]
fn the_checker_finds_what_is_wrong() {
    for bad in [
        "KERNEL==\"a\" MODE=\"0666\"",
        "KERNEL==\"a\"b\"",
        "KERNEL==a",
        "kernel==\"a\"",
        "KERNEL==\"a\",",
        "KERNEL==\"a\\\"\"",
        "# comment \\",
        "ENV{a b}=\"x\"",
        "#no space",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_name_that_two_devices_have_leads_to_neither() {
    let devices = [
        device(1, "data", kernel("ublkb1")),
        device(2, "data", kernel("ublkb2")),
    ];
    let text = rules(&devices, &no_access());
    assert!(!text.contains("by-name"));
    assert_eq!(
        text.matches("other devices here have the same name")
            .count(),
        2
    );
    assert_eq!(text.matches("rma/by-guid/").count(), 2);
    // A partition's link is not another device's name.
    let text = rules(
        &[
            device(1, "a", kernel("ublkb1")),
            device(2, "a-part1", kernel("ublkb2")),
        ],
        &no_access(),
    );
    assert!(text.contains(r#""rma/by-name/a\x2dpart1$env"#), "{text}");
    let long = device(1, &"\u{1}".repeat(63), kernel("ublkb1"));
    assert!(rules(&[long], &no_access()).contains("its name is too long"));
}

#[test]
fn kernel_and_account_names_hold_no_rule() {
    for bad in ["", "a b", "a\"", "a*", "a/b", "ä", "a|b", &"x".repeat(33)] {
        assert_eq!(KernelName::new(bad), None, "{bad}");
        assert_eq!(AccountName::new(bad), None, "{bad}");
    }
}

proptest! {
    #[test]
    fn no_text_can_inject(
        texts in proptest::collection::vec(
            prop_oneof![
                any::<String>(),
                proptest::sample::select(HOSTILE).prop_map(str::to_owned),
                r#"[-".$%\\/=,\n #a-c1]{0,12}"#,
            ],
            5..30,
        ),
        shared: bool,
    ) {
        let devices: Vec<_> = (1..)
            .zip(texts.chunks_exact(5))
            .map(|(n, texts)| OwnedDevice {
                name: texts[0].clone(),
                vendor: texts[1].clone(),
                model: texts[2].clone(),
                serial: texts[3].clone(),
                unit: texts[4].clone(),
                controller: texts[0].clone(),
                shared,
                ..device(n, "", kernel(&format!("ublkb{n}")))
            })
            .collect();
        check(&rules(&devices, &disk_access()), &devices);
    }
}

/// Says why a test does nothing; an error where the tools are required.
fn skipped(why: &str) {
    assert!(
        std::env::var("RMA_REQUIRE_TOOLS").as_deref() != Ok("1") || !why.contains("not installed"),
        "skipped: {why}"
    );
    eprintln!("skipped: {why}");
}

fn udev_version() -> Option<u32> {
    let output = Command::new("udevadm").arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

#[test]
fn udevadm_verify_finds_nothing() {
    match udev_version() {
        None => return skipped("udevadm is not installed"),
        Some(version) if version < 254 => {
            return skipped(&format!("udev {version} has no 'udevadm verify' (254 has)"));
        }
        Some(_) => {}
    }
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("udev/golden");
    let output = Command::new("udevadm")
        .args(["verify", "--resolve-names=never"])
        .arg(golden)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{text}");
}

/// Runs udev's own rule engine on a loop device's event, in a namespace in which it can change
/// nothing, and looks at the properties and links that come out.
#[test]
fn udev_makes_of_them_what_we_mean() {
    let installed = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if !installed("udevadm") || !installed("unshare") {
        return skipped("udevadm or unshare is not installed");
    }
    if !Path::new("/sys/class/block/loop0").exists() || !Path::new("/dev/loop0").exists() {
        return skipped("there is no /dev/loop0 to try rules on");
    }
    let namespace = |script: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--map-root-user", "--mount", "sh", "-ec", script]);
        unshare
    };
    if !namespace("mount -t tmpfs none /run")
        .output()
        .unwrap()
        .status
        .success()
    {
        return skipped("namespaces are not permitted");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("60-rma-devices.rules");
    for name in HOSTILE {
        let mut device = hostile_device(1, name);
        device.node = kernel("loop0");
        let bystander = hostile_device(2, "ublkb");
        let devices = [device, bystander];
        // Nothing is behind loop0, so it has no size, and we want to see what one that has gets.
        let text = rules(&devices, &no_access());
        let text: Vec<_> = text.lines().filter(|l| !l.contains("ATTR{size}")).collect();
        std::fs::write(&file, text.join("\n") + "\n").unwrap();
        let output = namespace(
            "keep=$(mktemp -d); mount -t tmpfs none $keep; cp $RULES $keep/rules
             touch $keep/node; mount --bind /dev/loop0 $keep/node
             mount -t tmpfs none /run; mount -t tmpfs none /dev
             touch /dev/loop0; mount --bind $keep/node /dev/loop0
             mkdir -p /run/udev/rules.d /run/none
             for dir in /etc/udev/rules.d /usr/lib/udev/rules.d; do
                 mkdir -p $dir; mount --bind /run/none $dir
             done
             cp $keep/rules /run/udev/rules.d/60-rma-devices.rules
             udevadm test --action=add /sys/class/block/loop0 2>/dev/null",
        )
        .env("RULES", &file)
        .output()
        .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        let property = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .unwrap_or_else(|| panic!("{name:?}: no {key} in {text}{errors}"))
        };
        assert_eq!(decoded(property("ID_RMA_NAME_ENC")), *name);
        let guid = devices[0].guid;
        assert_eq!(property("ID_SERIAL"), format!("rma-{guid}"));
        let mut links: Vec<_> = property("DEVLINKS").split(' ').collect();
        links.sort_unstable();
        assert_eq!(links.len(), 4, "{links:?}");
        assert_eq!(links[0], format!("/dev/disk/by-id/rma-{guid}"));
        assert_eq!(links[1], format!("/dev/rma/by-guid/{guid}"));
        let by_name = links[2].strip_prefix("/dev/rma/by-name/").unwrap();
        assert_eq!(decoded(by_name), *name);
        assert_eq!(
            links[3],
            format!("/dev/rma/by-path/{}", devices[0].addresses[0])
        );
        let known = [
            "ID_",
            "DEV",
            "DISKSEQ",
            "MAJOR",
            "MINOR",
            "ACTION",
            "SUBSYSTEM",
            "USEC_",
            "TAGS",
            "CURRENT_TAGS",
        ];
        let properties = text
            .lines()
            .skip_while(|line| !line.starts_with("DEVPATH="));
        for line in properties.filter(|line| line.contains('=')) {
            assert!(
                known.iter().any(|k| line.starts_with(k)),
                "{name:?}: {line}"
            );
        }
    }
}
