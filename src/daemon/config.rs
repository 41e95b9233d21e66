//! Configuration files: TOML in which every key is also a flag, read once, with errors for people.

use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use serde::de::DeserializeOwned;

use crate::wire::row::MAX_MACS;

/// A configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: cannot read the configuration: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file cannot be parsed, or has a key that does not exist.
    #[error("{path}:{line}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A key is missing.
    #[error("{0}")]
    Missing(String),
}

/// One name or a list of them, in TOML.
pub fn one_or_more<'de, D: serde::Deserializer<'de>>(
    d: D,
) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(untagged, expecting = "a string or an array of strings")]
    enum OneOrMore {
        One(String),
        More(Vec<String>),
    }
    Ok(Some(match OneOrMore::deserialize(d)? {
        OneOrMore::One(name) => vec![name],
        OneOrMore::More(names) => names,
    }))
}

/// The interfaces that a configuration names, or what is wrong with them.
pub fn interfaces(names: Option<Vec<String>>) -> Result<Vec<String>, String> {
    let names = names.filter(|names| !names.is_empty()).ok_or(
        "missing; name the network interface that leads to the segment, or a list of them",
    )?;
    if names.len() > MAX_MACS {
        return Err(format!(
            "{} interfaces; at most {MAX_MACS} can be used",
            names.len()
        ));
    }
    for (index, name) in names.iter().enumerate() {
        if name.is_empty() {
            return Err("an empty name; `ip link` lists the interfaces".into());
        }
        if names[..index].contains(name) {
            return Err(format!("{name} is named twice"));
        }
    }
    Ok(names)
}

/// Reads `path`, or gives the default when `path` is the built-in one and no such file exists.
pub fn read<T: DeserializeOwned + Default>(
    path: Option<&Path>,
    default: &Path,
) -> Result<T, ConfigError> {
    let (path, required) = path.map_or((default, false), |p| (p, true));
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, path),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !required => Ok(T::default()),
        Err(source) => Err(ConfigError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Parses a configuration's text; `path` is for the error.
pub fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|e| {
        let line = e.span().map_or(1, |span| {
            text[..span.start.min(text.len())]
                .bytes()
                .filter(|b| *b == b'\n')
                .count()
                + 1
        });
        let message = e
            .message()
            .lines()
            .next()
            .unwrap_or("cannot be parsed")
            .to_owned();
        ConfigError::Parse {
            path: path.to_owned(),
            line,
            message,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[allow(dead_code)]
        interface: Option<String>,
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = parse::<Sample>("interface = \"eth0\"\ninterfaec = 1\n", Path::new("x.toml"));
        let text = error.unwrap_err().to_string();
        assert!(
            text.starts_with("x.toml:2: ") && text.contains("interfaec"),
            "{text}"
        );
    }

    #[test]
    fn only_the_default_file_may_be_missing() {
        let none = Path::new("/nonexistent/rmad.toml");
        assert!(read::<Sample>(None, none).is_ok());
        assert!(read::<Sample>(Some(none), none).is_err());
    }
}
