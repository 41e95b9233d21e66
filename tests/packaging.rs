//! What the packages ship beside programs: service units, example configurations, man pages, rules.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rma::daemon::fabricd_config::FabricdConfig;
use rma::daemon::rmad_config::RmadConfig;
use rma::daemon::unitd_config::UnitdConfig;

const DAEMONS: [&str; 3] = ["rmad", "rma-unitd", "rma-fabricd"];
/// How exposed each service may be, tenths of systemd's points: without any hardening it is 96.
const EXPOSURE: [(&str, u32); 3] = [
    ("rmad.service", 50),
    ("rma-unitd.service", 35),
    ("rma-fabricd.service", 30),
];

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging")
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory of the repository");
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// systemd's own tool; `None` where it is missing and need not be there.
fn systemd_analyze(args: &[&str], directory: &Path) -> Option<Output> {
    let output = Command::new("systemd-analyze")
        .args(args)
        .env("SYSTEMD_UNIT_PATH", format!("{}:", directory.display()))
        .current_dir(directory)
        .output();
    match output {
        Ok(output) => Some(output),
        Err(e) => {
            let required = std::env::var("RMA_REQUIRE_TOOLS").as_deref() == Ok("1");
            assert!(!required, "systemd-analyze: {e}; run tools/setup");
            eprintln!("skipped: systemd-analyze: {e}");
            None
        }
    }
}

/// The units, with programs that are there in the place of those that will be.
fn units() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for path in files(&packaging().join("systemd")) {
        let text = fs::read_to_string(&path).unwrap();
        let text = [
            "/usr/sbin/rmad",
            "/usr/sbin/rma-unitd",
            "/usr/sbin/rma-fabricd",
        ]
        .iter()
        .fold(text, |text, program| text.replace(program, "/bin/true"));
        fs::write(dir.path().join(path.file_name().unwrap()), text).unwrap();
    }
    dir
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let dir = units();
    for path in files(dir.path()) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let Some(output) = systemd_analyze(&["verify", "--man=no", &name], dir.path()) else {
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // Other units of this machine are not ours to judge.
        let ours: Vec<_> = said.lines().filter(|line| line.contains("rma")).collect();
        assert!(ours.is_empty(), "{name}: {ours:?}");
    }
}

#[test]
fn a_mistake_in_a_unit_is_found() {
    let dir = units();
    let path = dir.path().join("rmad.service");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("[Service]", "[Service]\nNoSuchKey=yes")).unwrap();
    let Some(output) = systemd_analyze(&["verify", "--man=no", "rmad.service"], dir.path()) else {
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("NoSuchKey") && said.contains("rmad"),
        "{said}"
    );
}

#[test]
fn services_are_not_more_exposed_than_they_need_to_be() {
    let dir = units();
    for (name, limit) in EXPOSURE {
        let threshold = format!("--threshold={limit}");
        let args = [
            "security",
            "--offline=yes",
            &threshold,
            &format!("./{name}"),
        ];
        let Some(output) = systemd_analyze(&args, dir.path()) else {
            return;
        };
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{name}: {said}");
        // Something was measured.
        assert!(said.contains("Overall exposure level"), "{name}: {said}");
    }
}

#[test]
fn every_unit_is_in_a_package_and_watched() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest = fs::read_to_string(manifest).unwrap();
    for path in files(&packaging().join("systemd")) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(
            manifest.contains(&format!("packaging/systemd/{name}")),
            "{name}"
        );
    }
    for daemon in DAEMONS {
        let text = packaging().join(format!("systemd/{daemon}.service"));
        let text = fs::read_to_string(text).unwrap();
        for line in ["Type=notify", "WatchdogSec=30", "NoNewPrivileges=yes"] {
            assert!(text.lines().any(|l| l == line), "{daemon}: {line}");
        }
    }
}

#[test]
fn example_configurations_can_be_used() {
    let example = |name: &str| packaging().join("examples").join(name);
    let rmad = example("rmad.toml");
    let config = RmadConfig::load(rma::daemon::rmad_config::Keys::default(), Some(&rmad));
    let config = config.unwrap();
    assert_eq!(
        (config.interface, config.device_access.mode),
        (vec!["eth1".into()], Some(0o660))
    );
    let unitd = example("unitd.toml");
    let keys = rma::daemon::unitd_keys::Keys::default();
    let config = UnitdConfig::load(&keys, Some(&unitd)).unwrap();
    assert_eq!(config.controllers[0].devices.len(), 2);
    let fabricd = example("fabricd.toml");
    let keys = rma::daemon::fabricd_config::Keys::default();
    let config = FabricdConfig::load(keys, Some(&fabricd)).unwrap();
    assert_eq!(config.policy.word(), "pending");
    assert_eq!(
        files(&packaging().join("examples")).len(),
        3,
        "all are tried"
    );
}

#[test]
fn every_program_has_a_man_page_in_its_section() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_rma"))
        .arg("manpages")
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(output.status.success());
    let programs = DAEMONS.iter().map(|daemon| (*daemon, "8"));
    for (program, section) in programs.chain([("rma", "1"), ("rma-allocate", "1")]) {
        let page = dir.path().join(format!("{program}.{section}"));
        let page = fs::read_to_string(page).unwrap_or_else(|e| panic!("{program}: {e}"));
        assert!(page.contains(&format!(".TH {program} {section}")), "{page}");
    }
}

#[test]
fn only_the_service_that_is_asked_ends_with_a_mistake() {
    // The flags by which units and packages use rmad without a daemon.
    let rmad = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_rmad")).args(args).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state").display().to_string();
    let rules = dir.path().join("rules").display().to_string();
    let base = [
        "--interface",
        "lo",
        "--state-dir",
        &state,
        "--udev-rules-dir",
        &rules,
    ];
    // Nothing was ever there: nothing to remove, and nothing is made.
    let args = [&base[..], &["--remove-devices"]].concat();
    assert_eq!(rmad(&args), (Some(0), String::new()));
    assert!(!Path::new(&state).exists());
    let args = [&base[..], &["--load-modules", "--export", "nbd-socket"]].concat();
    assert_eq!(rmad(&args), (Some(0), String::new()));
    let (status, said) = rmad(&[&base[..], &["--remove-devices", "--load-modules"]].concat());
    assert_eq!(status, Some(2), "{said}");
    let (status, said) = rmad(&[&base[..], &["--force"]].concat());
    assert!(
        status == Some(2) && said.contains("--remove-devices"),
        "{said}"
    );
}
