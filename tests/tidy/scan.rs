//! Reads Rust source as tokens: which paths are named, and where.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A path as it is named in code, groups of a `use` taken apart, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) path: String,
    /// Whether `!` follows.
    pub(crate) is_macro: bool,
    /// Whether it is part of a `use`.
    pub(crate) is_import: bool,
    pub(crate) line: usize,
}

/// The paths that a source names, in order, and the modules in other files that it declares for
/// tests; what is for tests only is left out unless `with_tests`.
pub(crate) fn tokens_of(path: &str, text: &str, with_tests: bool) -> (Vec<Token>, Vec<String>) {
    let stream: TokenStream = text
        .parse()
        .unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut walk = Walk {
        with_tests,
        ..Walk::default()
    };
    walk.stream(stream, "");
    let Walk {
        mut found,
        modules,
        imported,
        ..
    } = walk;
    for token in found.iter_mut().filter(|token| !token.is_import) {
        // A name that a `use` brought in stands for the whole path.
        let (first, rest) = token.path.split_once("::").unwrap_or((&token.path, ""));
        if let Some((_, whole)) = imported.iter().find(|(name, _)| name == first)
            && !rest.is_empty()
        {
            token.path = format!("{whole}::{rest}");
        }
    }
    (found, modules)
}

#[derive(Default)]
struct Walk {
    with_tests: bool,
    found: Vec<Token>,
    modules: Vec<String>,
    /// Names that are imported, and the whole paths they stand for.
    imported: Vec<(String, String)>,
    /// Whether the tokens are those of a `use`.
    in_use: bool,
}

impl Walk {
    /// Walks tokens; `prefix` is the path in front of a group of a `use`.
    fn stream(&mut self, stream: TokenStream, prefix: &str) {
        let tokens: Vec<_> = stream.into_iter().collect();
        let mut rest = tokens.as_slice();
        while let Some((first, after)) = rest.split_first() {
            rest = match first {
                TokenTree::Punct(punct) if punct.as_char() == '#' => self.attribute(after),
                TokenTree::Punct(punct) if punct.as_char() == '*' && !prefix.is_empty() => {
                    self.find(format!("{prefix}*"), false, first);
                    after
                }
                TokenTree::Ident(word) if word == "use" => {
                    self.in_use = true;
                    after
                }
                TokenTree::Ident(_) => self.path(rest, prefix),
                TokenTree::Group(group) => {
                    self.stream(group.stream(), "");
                    after
                }
                TokenTree::Punct(punct) => {
                    self.in_use &= !matches!(punct.as_char(), ';' | '<');
                    after
                }
                TokenTree::Literal(_) => after,
            };
        }
    }

    /// Looks at what follows a `#`; skips the item if it is for tests only.
    fn attribute<'a>(&mut self, rest: &'a [TokenTree]) -> &'a [TokenTree] {
        let Some((TokenTree::Group(group), after)) = rest.split_first() else {
            return rest;
        };
        let is_test = group.stream().to_string().replace(' ', "") == "cfg(test)";
        if !is_test || self.with_tests {
            // Text of documentation is no code; other attributes may name paths.
            return after;
        }
        let is_end = |token: &TokenTree| match token {
            TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
            TokenTree::Punct(punct) => punct.as_char() == ';',
            _ => false,
        };
        let is_word = |token: &TokenTree, word: &str| matches!(token, TokenTree::Ident(ident) if *ident == word);
        // A `use` may have a group in it and ends with the semicolon all the same.
        let is_use = after.iter().take(2).any(|token| is_word(token, "use"));
        let is_semicolon =
            |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ';');
        let end = after
            .iter()
            .position(|t| if is_use { is_semicolon(t) } else { is_end(t) });
        let Some(end) = end else { return &[] };
        if let [.., module, TokenTree::Ident(name), TokenTree::Punct(_)] = &after[..=end]
            && is_word(module, "mod")
        {
            self.modules.push(name.to_string());
        }
        &after[end + 1..]
    }

    /// Takes a path from the front, a `use` with its groups.
    fn path<'a>(&mut self, tokens: &'a [TokenTree], prefix: &str) -> &'a [TokenTree] {
        let mut path = prefix.to_owned();
        let mut rest = tokens;
        loop {
            let Some((TokenTree::Ident(name), after)) = rest.split_first() else {
                return self.group(rest, &path);
            };
            path.push_str(&name.to_string());
            rest = after;
            match rest {
                [TokenTree::Punct(a), TokenTree::Punct(b), next, ..]
                    if a.as_char() == ':' && b.as_char() == ':' && continues(next) =>
                {
                    path.push_str("::");
                    rest = &rest[2..];
                }
                _ => break,
            }
        }
        let is_macro = matches!(rest.first(), Some(TokenTree::Punct(p)) if p.as_char() == '!');
        // What an import is renamed to, or what a value is cast to, is no path from here.
        let (name, rest) = match rest {
            [TokenTree::Ident(word), TokenTree::Ident(name), after @ ..] if word == "as" => {
                (name.to_string(), after)
            }
            _ => (last_name(&path).to_owned(), rest),
        };
        if self.in_use {
            let whole = path.strip_suffix("::self").unwrap_or(&path).to_owned();
            let name = if name == "self" {
                last_name(&whole).to_owned()
            } else {
                name
            };
            self.imported.push((name, whole.clone()));
            path = whole;
        }
        self.find(path, is_macro, &tokens[0]);
        rest
    }

    /// Takes what a path ends with that is no name: a group or a star.
    fn group<'a>(&mut self, rest: &'a [TokenTree], path: &str) -> &'a [TokenTree] {
        match rest.split_first() {
            Some((TokenTree::Group(group), after)) => {
                self.stream(group.stream(), path);
                after
            }
            Some((star, after)) => {
                self.find(format!("{path}*"), false, star);
                after
            }
            None => rest,
        }
    }

    fn find(&mut self, path: String, is_macro: bool, at: &TokenTree) {
        let line = at.span().start().line;
        self.found.push(Token {
            path,
            is_macro,
            is_import: self.in_use,
            line,
        });
    }
}

/// Whether a path goes on with this token behind `::`.
fn continues(next: &TokenTree) -> bool {
    match next {
        TokenTree::Ident(_) => true,
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Punct(punct) => punct.as_char() == '*',
        TokenTree::Literal(_) => false,
    }
}

/// The last name of a path.
pub(crate) fn last_name(path: &str) -> &str {
    path.rsplit("::").next().unwrap_or(path)
}
