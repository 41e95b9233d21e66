//! Rules about the source itself that the compiler does not check.

#[path = "tidy/scan.rs"]
mod scan;

use scan::{Token, last_name, tokens_of};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Which part of the library may use which: each those with a lower number.
const LAYERS: &[(&str, u8)] = &[
    ("planted", 0),
    ("wire", 0),
    ("session", 1),
    ("crt", 2),
    ("initiator", 3),
    ("lease", 3),
    ("fabric", 4),
    ("unit", 5),
    ("rma", 6),
    // Above: the sans-I/O core. Below: the shell.
    ("caches", 7),
    ("store", 8),
    ("net", 8),
    ("export", 9),
    ("backend", 9),
    ("admin", 10),
    ("daemon", 11),
];
/// The highest layer of the core.
const CORE: u8 = 6;

/// What the core may not name: clocks, I/O, threads, locks, randomness that no seed gives. A path
/// forbids everything below it.
const FORBIDDEN_IN_CORE: &[&str] = &[
    "std::env",
    "std::fs",
    "std::hash::RandomState",
    "std::net",
    "std::os",
    "std::process",
    "std::sync::Barrier",
    "std::sync::Condvar",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "std::sync::mpsc",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::time::UNIX_EPOCH",
    "std::collections::hash_map::RandomState",
    "env_logger",
    "getrandom",
    "libc",
    "memmap2",
    "nix",
    "pnet",
    "rusqlite",
    "sd_notify",
    "socket2",
    "tempfile",
];
/// What the core may name of crates and modules of which it may name nothing else.
const ALLOWED_IN_CORE: &[(&str, &[&str])] = &[
    // Only generators that are given a seed.
    (
        "fastrand",
        &[
            "fastrand::Rng",
            "fastrand::Rng::with_seed",
            "fastrand::Rng::fork",
        ],
    ),
    // What a storage says of its failures is passed on; nothing is read or written.
    (
        "std::io",
        &[
            "std::io::Error",
            "std::io::Error::*",
            "std::io::ErrorKind",
            "std::io::ErrorKind::*",
            "std::io::Result",
        ],
    ),
    (
        "std::time",
        &["std::time::Duration", "std::time::Duration::*"],
    ),
];
/// Functions and macros that the core may not name, however they are reached.
const FORBIDDEN_NAMES_IN_CORE: &[&str] = &[
    "println",
    "eprintln",
    "print",
    "eprint",
    "dbg",
    "thread_local",
    "include_bytes",
];

/// The modules that talk to the kernel or to the processor, which alone may hold `unsafe`.
const UNSAFE_ALLOWED: &[&str] = &[
    "src/backend/syscalls.rs",
    "src/backend/uring.rs",
    "src/caches.rs",
    "src/daemon/event_loop.rs",
    "src/export/kernel/flusher.rs",
    "src/export/kernel/uring.rs",
    "src/net/raw.rs",
    "src/net/ring.rs",
    "src/store/mmap.rs",
    "tools/rig/src/namespace.rs",
    "tools/rig/src/process.rs",
];

/// The poll between two looks at a condition, which alone may sleep.
const SLEEP_ALLOWED: &str = "tools/rig/src/wait.rs";

/// The most lines of a file before its tests.
const MAX_LINES: usize = 600;
/// Files that may be longer. None is.
const LONGER_ALLOWED: &[&str] = &[];

/// Words that mark work left undone.
const UNDONE: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
    concat!("HA", "CK:"),
];
/// Macros that mark work left undone.
const UNDONE_MACROS: &[&str] = &["todo", "unimplemented"];

/// A Rust source file of the repository.
struct Source {
    /// Relative to the repository, with `/`.
    path: String,
    text: String,
    /// Everything but what is compiled for tests only.
    code: Vec<Token>,
    /// Names of modules that are declared here for tests only, in files of their own.
    test_modules: Vec<String>,
}

#[test]
fn the_core_names_no_clock_no_io_no_thread_and_no_chance() {
    let mut wrong = Vec::new();
    for source in sources()
        .iter()
        .filter(|source| layer_of_file(source) <= Some(CORE))
    {
        if layer_of_file(source).is_none() {
            continue;
        }
        for token in source
            .code
            .iter()
            .filter(|token| is_forbidden_in_core(token))
        {
            wrong.push(format!("{}:{}: {}", source.path, token.line, token.path));
        }
    }
    report(
        "the core is passed time, seeds and bytes; it may not name",
        &wrong,
    );
}

#[test]
fn dependencies_point_one_way() {
    let mut wrong = Vec::new();
    for source in sources() {
        let Some(own) = layer_of_file(source) else {
            continue;
        };
        for token in &source.code {
            let Some(rest) = token.path.strip_prefix("crate::") else {
                continue;
            };
            let name = rest.split("::").next().unwrap_or_default();
            let same = source.path.starts_with(&format!("src/{name}/"));
            if !same && layer(name).is_some_and(|other| other >= own) {
                wrong.push(format!("{}:{}: {}", source.path, token.line, token.path));
            }
        }
    }
    report(
        "a module uses what is below it in src/lib.rs, never",
        &wrong,
    );
}

#[test]
fn unsafe_code_is_where_the_kernel_is_talked_to_and_says_why() {
    let mut wrong = Vec::new();
    for source in sources() {
        let lines: Vec<_> = source.text.lines().collect();
        let (tokens, _) = tokens_of(&source.path, &source.text, true);
        for token in tokens.iter().filter(|token| token.path == "unsafe") {
            // The lint that a module without unsafe code sets is no use of it.
            let place = format!("{}:{}", source.path, token.line);
            if !UNSAFE_ALLOWED.contains(&source.path.as_str()) {
                wrong.push(format!("{place}: unsafe outside of the listed modules"));
            } else if !has_reason(&lines, token.line) {
                wrong.push(format!("{place}: unsafe without a SAFETY reason"));
            }
        }
    }
    report("unsafe code", &wrong);
    for path in UNSAFE_ALLOWED {
        let text = fs::read_to_string(root().join(path)).unwrap_or_default();
        assert!(text.contains("unsafe"), "{path} needs no listing any more");
    }
}

#[test]
fn only_one_place_sleeps() {
    let mut wrong = Vec::new();
    for source in sources()
        .iter()
        .filter(|source| source.path != SLEEP_ALLOWED)
    {
        let (tokens, _) = tokens_of(&source.path, &source.text, true);
        for token in tokens
            .iter()
            .filter(|token| token.path == "std::thread::sleep")
        {
            wrong.push(format!("{}:{}", source.path, token.line));
        }
    }
    report("wait for a condition, with a deadline, instead of", &wrong);
}

#[test]
fn files_are_short() {
    let mut wrong = Vec::new();
    for source in sources() {
        let lines = lines_before_tests(&source.text);
        let longer = LONGER_ALLOWED.contains(&source.path.as_str());
        if lines > MAX_LINES && !longer && !is_for_tests(&source.path) {
            wrong.push(format!("{}: {lines} lines before its tests", source.path));
        }
    }
    report(
        &format!("a file of more than {MAX_LINES} lines wants to be two"),
        &wrong,
    );
}

#[test]
fn every_file_begins_with_what_it_owns() {
    let mut wrong = Vec::new();
    for source in sources() {
        let first = source.text.lines().next().unwrap_or_default();
        if first
            .strip_prefix("//! ")
            .is_none_or(|text| text.trim().is_empty())
        {
            wrong.push(source.path.clone());
        }
    }
    report("a file's first line says, after //!, what it owns", &wrong);
}

#[test]
fn nothing_is_left_undone() {
    let mut wrong = Vec::new();
    for path in files(&["rs", "md", "toml", "lua", "sh", "rules", ""]) {
        let Ok(text) = fs::read_to_string(root().join(&path)) else {
            continue;
        };
        for (index, line) in text.lines().enumerate() {
            if UNDONE.iter().any(|mark| line.contains(mark)) {
                wrong.push(format!("{path}:{}: {}", index + 1, line.trim()));
            }
        }
    }
    for source in sources() {
        for token in source.code.iter().filter(|token| token.is_macro) {
            if UNDONE_MACROS.contains(&last_name(&token.path)) {
                wrong.push(format!("{}:{}: {}!", source.path, token.line, token.path));
            }
        }
    }
    report("left undone", &wrong);
}

#[test]
fn the_layers_are_those_of_the_library() {
    let text = fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs");
    let (declared, _) = tokens_of("src/lib.rs", &text, false);
    for pair in declared.windows(2).filter(|pair| pair[0].path == "mod") {
        assert!(
            layer(&pair[1].path).is_some(),
            "{} is in no layer",
            pair[1].path
        );
    }
    let documented: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("//! "))
        .collect();
    for (name, _) in LAYERS {
        assert!(
            documented
                .iter()
                .any(|line| line.split_whitespace().any(|word| word == *name)),
            "{name} is not in the list at the head of src/lib.rs"
        );
    }
}

#[test]
fn these_rules_find_what_breaks_them() {
    let text = r#"
        //! Says "std::fs" in a comment and a string only.
        use std::{collections::BTreeMap, fs, io::{self, Read as _}, time::{Duration, Instant}};
        fn f() { let t = std::time::SystemTime::now(); fastrand::u64(..); ::nix::unistd::getpid(); }
        fn g() { let r = fastrand::Rng::with_seed(1); let s = "std::net"; println!("{s}"); }
        use fastrand::Rng;
        use std::{time, os as inner};
        fn h() { let r = Rng::new(); let x = unsafe { y() }; todo!() }
        fn i(e: io::Error) -> impl Copy + use<> { io::stdin(); time::Duration::ZERO; inner::fd(); 1 }
        #[cfg(test)]
        use std::net;
        #[cfg(test)]
        mod tests { use std::thread; fn t() { unimplemented!() } }
        #[cfg(test)]
        mod more;
        fn last() { libc::getpid(); time::Instant::now(); }
    "#;
    let (tokens, test_modules) = tokens_of("example.rs", text, false);
    let found: Vec<_> = tokens
        .iter()
        .filter(|token| is_forbidden_in_core(token))
        .map(|t| t.path.as_str())
        .collect();
    assert_eq!(
        found,
        [
            "std::fs",
            "std::io::Read",
            "std::time::Instant",
            "std::time::SystemTime::now",
            "fastrand::u64",
            "nix::unistd::getpid",
            "println",
            "std::os",
            "fastrand::Rng::new",
            "std::io::stdin",
            "std::os::fd",
            "libc::getpid",
            "std::time::Instant::now",
        ]
    );
    let instant = tokens
        .iter()
        .find(|token| token.path == "std::time::Instant");
    assert_eq!(instant.map(|token| token.line), Some(3));
    assert_eq!(test_modules, ["more"]);
    let named = |name: &str| tokens.iter().any(|token| token.path == name);
    assert!(named("unsafe") && named("todo"));
    assert!(!named("unimplemented") && !named("std::thread") && !named("std::net"));

    assert!(has_reason(&["// SAFETY: fine.", "unsafe { f() }"], 2));
    assert!(has_reason(
        &["// SAFETY: fine,", "// as it is.", "let x = unsafe { f() }"],
        3
    ));
    assert!(!has_reason(
        &["// SAFETY: fine.", "f();", "", "unsafe { g() }"],
        4
    ));
    assert_eq!(
        lines_before_tests("a\nb\n#[cfg(test)]\nmod tests {\n}\n"),
        2
    );
    assert_eq!(lines_before_tests("a\n#[cfg(test)]\nuse x;\nb\n"), 4);
}

fn is_forbidden_in_core(token: &Token) -> bool {
    let within = |path: &str| {
        token.path == path
            || token
                .path
                .strip_prefix(path)
                .is_some_and(|r| r.starts_with("::"))
    };
    if token.is_macro && FORBIDDEN_NAMES_IN_CORE.contains(&last_name(&token.path)) {
        return true;
    }
    if FORBIDDEN_IN_CORE.iter().any(|path| within(path)) {
        return true;
    }
    if ["std", "std::*"].contains(&token.path.as_str()) {
        return true;
    }
    let partly = ALLOWED_IN_CORE.iter().find(|(path, _)| within(path));
    // A module that is imported as such is judged by what is named through it.
    if token.is_import && partly.is_some_and(|(path, _)| token.path == *path) {
        return false;
    }
    let allows = |allowed: &&str| match allowed.strip_suffix('*') {
        Some(start) => token.path.starts_with(start),
        None => token.path == *allowed,
    };
    partly.is_some_and(|(_, allowed)| !allowed.iter().any(allows))
}

fn layer(name: &str) -> Option<u8> {
    LAYERS
        .iter()
        .find(|(layer, _)| *layer == name)
        .map(|(_, number)| *number)
}

fn layer_of_file(source: &Source) -> Option<u8> {
    layer(source.path.strip_prefix("src/")?.split('/').next()?)
}

/// Whether a comment with the reason is on the line or in the comment right above its statement.
fn has_reason(lines: &[&str], line: usize) -> bool {
    let mut above = lines[..line].iter().rev().map(|line| line.trim());
    let own = above.next().unwrap_or_default();
    if own.contains("SAFETY:") {
        return true;
    }
    // A statement may have begun on an earlier line.
    above
        .skip_while(|line| {
            !line.starts_with("//") && !line.ends_with([';', '}']) && !line.is_empty()
        })
        .take_while(|line| line.starts_with("//"))
        .any(|line| line.contains("SAFETY:"))
}

fn lines_before_tests(text: &str) -> usize {
    let lines: Vec<_> = text.lines().collect();
    let tests = lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod tests"));
    tests.unwrap_or(lines.len())
}

/// Whether a file is compiled for tests only because of where it is.
fn is_for_tests(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs")
}

fn report(rule: &str, wrong: &[String]) {
    assert!(wrong.is_empty(), "{rule}:\n  {}", wrong.join("\n  "));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Rust sources, without the files of modules that are for tests only.
fn sources() -> &'static [Source] {
    static SOURCES: LazyLock<Vec<Source>> = LazyLock::new(read_sources);
    &SOURCES
}

fn read_sources() -> Vec<Source> {
    let mut all: Vec<Source> = files(&["rs"])
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(root().join(&path)).expect("a source file");
            let (code, test_modules) = tokens_of(&path, &text, false);
            Source {
                path,
                text,
                code,
                test_modules,
            }
        })
        .collect();
    let for_tests: Vec<String> = all
        .iter()
        .flat_map(|source| {
            let parent = source
                .path
                .trim_end_matches(".rs")
                .trim_end_matches("/mod")
                .to_owned();
            source
                .test_modules
                .iter()
                .map(move |name| format!("{parent}/{name}"))
        })
        .collect();
    for source in &mut all {
        let path = source.path.trim_end_matches(".rs");
        let inside = |module: &String| {
            path.strip_prefix(module.as_str())
                .is_some_and(|r| r.is_empty() || r.starts_with('/'))
        };
        if is_for_tests(&source.path) || for_tests.iter().any(inside) {
            source.code.clear();
        }
    }
    assert!(
        all.len() > 20,
        "the sources are not where they are looked for"
    );
    all
}

/// The files of the repository with one of these endings, in order.
fn files(endings: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![root().to_path_buf()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory)
            .expect("a directory of the repository")
            .flatten()
        {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().expect("a kind of file");
            if kind.is_dir() {
                if !name.starts_with('.') && name != "target" {
                    open.push(path);
                }
            } else if kind.is_file() && has_ending(&path, endings) {
                found.push(relative(&path));
            }
        }
    }
    found.sort();
    found
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let ending = path.extension().unwrap_or_default().to_string_lossy();
    endings.contains(&&*ending)
}

fn relative(path: &Path) -> String {
    let path: PathBuf = path
        .strip_prefix(root())
        .expect("inside the repository")
        .into();
    path.to_string_lossy().replace('\\', "/")
}
