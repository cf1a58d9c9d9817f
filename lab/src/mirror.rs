//! Where guests' packages come from: the mirror that this machine's own apt uses.
//!
//! Formats: sources.list(5), both the one-line style and deb822, and the mirror lists of apt-transport-mirror(1) that
//! cloud images come with.

use crate::Error;
use std::{fs, path::Path};

/// The first mirror in apt's configuration under `root` (`/`) that offers Debian suite `codename` with `main`.
pub(crate) fn find(root: &Path, codename: &str) -> Result<String, Error> {
    let apt = root.join("etc/apt");
    let mut files = vec![apt.join("sources.list")];
    let parts = apt.join("sources.list.d");
    if let Ok(entries) = fs::read_dir(&parts) {
        let mut more: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        more.sort();
        files.extend(more);
    }
    for file in files {
        // A machine has one of the styles; the other's file is absent.
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let found = match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => in_deb822(&text, codename),
            Some("list") => in_one_line_style(&text, codename),
            _ => None,
        };
        if let Some(uri) = found {
            return Ok(resolve(root, uri));
        }
    }
    Err(Error::NoMirror { codename: codename.into() })
}

fn in_deb822(text: &str, codename: &str) -> Option<String> {
    let mut stanza = Vec::new();
    for line in text.lines().map(str::trim_end).chain([""]) {
        if !line.is_empty() {
            if !line.starts_with('#') {
                stanza.push(line);
            }
            continue;
        }
        let field = |name: &str| {
            stanza.iter().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        let has = |name: &str, word: &str| {
            field(name).is_some_and(|value| value.split(' ').any(|each| each == word))
        };
        let enabled = !field("Enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"));
        let offers = enabled && has("Types", "deb") && has("Suites", codename) && has("Components", "main");
        if let Some(uri) = field("URIs").and_then(|uris| uris.split(' ').next()).filter(|_| offers) {
            return Some(uri.to_owned());
        }
        stanza.clear();
    }
    None
}

fn in_one_line_style(text: &str, codename: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        // Options stand in brackets between the type and the address.
        let rest = if rest.starts_with('[') { rest.split_once(']')?.1 } else { rest };
        let mut words = rest.split_whitespace();
        let uri = words.next()?;
        (words.next()? == codename && words.any(|component| component == "main")).then(|| uri.to_owned())
    })
}

/// A mirror list is a file that names mirrors, one per line: take its first.
fn resolve(root: &Path, uri: String) -> String {
    let Some(list) = uri.strip_prefix("mirror+file:") else { return uri };
    let text = fs::read_to_string(root.join(list.trim_start_matches('/'))).unwrap_or_default();
    let first =
        text.lines().find_map(|line| line.split_whitespace().next().filter(|word| !word.starts_with('#')));
    first.map_or(uri.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> Result<tempfile::TempDir, std::io::Error> {
        let root = tempfile::tempdir()?;
        for (path, text) in files {
            let path = root.path().join(path);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(path, text)?;
        }
        Ok(root)
    }

    #[test]
    fn deb822_sources_of_other_vendors_and_disabled_ones_are_passed_over()
    -> Result<(), Box<dyn std::error::Error>> {
        let root = machine(&[
            (
                "etc/apt/sources.list.d/a.sources",
                "Types: deb\nURIs: https://vendor.example\nSuites: nodistro\nComponents: main\n",
            ),
            (
                "etc/apt/sources.list.d/debian.sources",
                "Types: deb\nEnabled: no\nURIs: http://old.example\nSuites: bookworm\nComponents: main\n\n\
                 Types: deb deb-src\n# a comment\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\
                 Components: main contrib\n",
            ),
        ])?;
        assert_eq!(find(root.path(), "bookworm")?, "http://mirror.example/debian");
        Ok(())
    }

    #[test]
    fn one_line_sources_with_options_are_understood() -> Result<(), Box<dyn std::error::Error>> {
        let text = "# deb http://no.example bookworm main\ndeb-src http://no.example bookworm main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm contrib main\n";
        let root = machine(&[("etc/apt/sources.list", text)])?;
        assert_eq!(find(root.path(), "bookworm")?, "http://mirror.example/debian");
        Ok(())
    }

    #[test]
    fn a_mirror_list_gives_its_first_mirror() -> Result<(), Box<dyn std::error::Error>> {
        let root = machine(&[
            (
                "etc/apt/sources.list.d/debian.sources",
                "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: trixie\nComponents: main\n",
            ),
            ("etc/apt/mirrors/debian.list", "# ours\nhttps://mirror.example/debian\n"),
        ])?;
        assert_eq!(find(root.path(), "trixie")?, "https://mirror.example/debian");
        Ok(())
    }

    #[test]
    fn no_mirror_is_an_error_that_names_the_suite() -> Result<(), Box<dyn std::error::Error>> {
        let root = machine(&[])?;
        let text = find(root.path(), "trixie").err().map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains("`trixie`"), "{text}");
        Ok(())
    }
}
