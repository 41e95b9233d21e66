//! Files for `rma apply`: read as TOML or JSON, with errors for people, and written by `rma export`.

use std::path::{Path, PathBuf};

use crate::rma::desired::Desired;
use crate::rma::request::TableInfo;

/// The largest file that is read.
pub const MAX_FILE_BYTES: u64 = 16 << 20;

/// A file cannot be applied, or a table not be exported.
#[derive(Debug, thiserror::Error)]
pub enum ApplyFileError {
    /// It cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is too large.
    #[error("{0}: it is larger than {MAX_FILE_BYTES} bytes; is it the right file?")]
    TooLarge(PathBuf),
    /// It is not text, or does not say what can be applied.
    #[error("{path}:{line}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// The table has no such form.
    #[error("the table cannot be written as TOML: {0}")]
    Toml(#[from] toml::ser::Error),
    /// The table has no such form.
    #[error("the table cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Reads a file: JSON where it begins with a brace, otherwise TOML.
pub fn read(path: &Path) -> Result<Desired, ApplyFileError> {
    let fail = |source| ApplyFileError::Read {
        path: path.to_owned(),
        source,
    };
    let length = std::fs::metadata(path).map_err(fail)?.len();
    if length > MAX_FILE_BYTES {
        return Err(ApplyFileError::TooLarge(path.to_owned()));
    }
    let text = std::fs::read_to_string(path).map_err(fail)?;
    parse(&text, path)
}

/// Reads a file's text; `path` is for the error.
pub fn parse(text: &str, path: &Path) -> Result<Desired, ApplyFileError> {
    let wrong = |line, message: &str| ApplyFileError::Parse {
        path: path.to_owned(),
        line,
        message: message
            .lines()
            .next()
            .unwrap_or("cannot be parsed")
            .to_owned(),
    };
    let desired: Desired = if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|e| wrong(e.line(), &e.to_string()))?
    } else {
        toml::from_str(text).map_err(|e| {
            let start = e.span().map_or(0, |span| span.start.min(text.len()));
            let before = text.get(..start).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            wrong(line, e.message())
        })?
    };
    if desired.is_empty() {
        return Err(wrong(
            1,
            "nothing is desired; `rma export` shows how it is said",
        ));
    }
    Ok(desired)
}

/// What is, as a file that makes it so again: JSON or TOML.
pub fn export(table: &TableInfo, json: bool) -> Result<String, ApplyFileError> {
    let desired = Desired::of(table);
    if json {
        return Ok(serde_json::to_string_pretty(&desired)? + "\n");
    }
    Ok(toml::to_string(&desired)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_in_one_line_that_names_the_place() {
        let path = Path::new("desired.toml");
        for (text, line, word) in [
            ("", 1, "nothing"),
            ("{}", 1, "nothing"),
            ("granularity = \"extent\"\ncolour = 1\n", 2, "colour"),
            ("[[device]]\nrow = \"a\"\nownership = \"mine\"\n", 3, "mine"),
            ("[[device]]\nrow = \n", 2, ""),
            ("{\n \"unit\": [1]}", 2, "DesiredRow"),
            ("{\n \"unit\": [", 2, "EOF"),
            (
                "[[device]]\nrow = \"a\"\nownership = \"unallocated\"\nextents = [{ offset = \"1X\", size = 1 }]\n",
                4,
                "1X",
            ),
        ] {
            let error = parse(text, path).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("desired.toml:{line}: ")),
                "{error}"
            );
            assert!(
                error.contains(word) && error.lines().count() == 1,
                "{error}"
            );
        }
        let toml = "granularity = \"unit\"";
        assert_eq!(
            parse(toml, path).unwrap(),
            parse("{\"granularity\": \"unit\"}", path).unwrap()
        );
    }
}
