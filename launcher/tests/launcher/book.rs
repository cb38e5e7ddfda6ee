//! The book in `docs/` tells the truth about the source, as far as a test can see.

use std::fs;
use std::path::{Path, PathBuf};

/// The project's top folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Each page of the book, and the README, with its text.
fn pages() -> Vec<(PathBuf, String)> {
    let docs = root().join("docs");
    let parts = ["decisions", "switcher"].map(|part| docs.join(part));
    [docs]
        .iter()
        .chain(&parts)
        .flat_map(|folder| fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .chain([root().join("README.md"), root().join("CONTRIBUTING.md")])
        .map(|path| (path.clone(), fs::read_to_string(&path).unwrap()))
        .collect()
}

/// Everything in `text` that stands between `before` and the next `after`.
fn between<'a>(text: &'a str, before: &str, after: &str) -> Vec<&'a str> {
    text.split(before).skip(1).filter_map(|rest| rest.split_once(after)).map(|(it, _)| it).collect()
}

/// The lines of a file that are this mark, and nothing else but what begins a comment: slashes in
/// Rust, `#` in a golden file.
fn marks(source: &str, mark: &str) -> Vec<usize> {
    source
        .lines()
        .enumerate()
        .filter(|(_, line)| line.trim().trim_start_matches(['/', '#']).trim() == mark)
        .map(|(number, _)| number)
        .collect()
}

#[test]
fn every_anchor_that_is_shown_exists_once() {
    let mut shown = 0;
    for (page, text) in pages() {
        for include in between(&text, "{{#include ", "}}") {
            let (file, anchor) = match include.split_once(':') {
                Some((file, anchor)) => (file, Some(anchor)),
                None => (include, None),
            };
            let path = page.parent().unwrap().join(file);
            let source = fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("{}: {include}: {error}", page.display()));
            shown += 1;
            let Some(anchor) = anchor else { continue };
            let start = marks(&source, &format!("ANCHOR: {anchor}"));
            let end = marks(&source, &format!("ANCHOR_END: {anchor}"));
            match (&start[..], &end[..]) {
                ([start], [end]) if start + 1 < *end => {}
                _ => panic!("{}: {include}: begins at {start:?}, ends at {end:?}", page.display()),
            }
        }
    }
    assert!(shown > 10, "the book shows only {shown} places");
}

/// A golden file is shown case by case, and a case that is shown has its listing.
#[test]
fn golden_files_are_shown_with_their_listings() {
    let mut shown = 0;
    for (page, text) in pages() {
        for include in between(&text, "{{#include ", "}}") {
            let Some((file, anchor)) = include.split_once(':') else {
                assert!(!include.contains("/golden/"), "{}: {include}: all of it", page.display());
                continue;
            };
            if !file.contains("/golden/") {
                continue;
            }
            let source = fs::read_to_string(page.parent().unwrap().join(file)).unwrap();
            let start = marks(&source, &format!("ANCHOR: {anchor}"));
            let end = marks(&source, &format!("ANCHOR_END: {anchor}"));
            let (Some(start), Some(end)) = (start.first(), end.first()) else {
                panic!("{}: {include}: no such case", page.display());
            };
            let lines = source.lines().take(*end).skip(start + 1);
            let (cases, listing): (Vec<&str>, Vec<&str>) =
                lines.filter(|line| !line.is_empty()).partition(|line| line.starts_with("=="));
            let listed = !listing.is_empty() && listing.iter().all(|line| line.contains("| "));
            assert!(cases.len() == 1 && listed, "{}: {include}", page.display());
            shown += 1;
        }
    }
    assert!(shown > 5, "the book shows only {shown} cases of golden files");
}

#[test]
fn every_file_that_is_named_exists() {
    let folders = [
        "abi",
        "guest",
        "drivers",
        "kernel",
        "switcher",
        "processor",
        "host",
        "launcher",
        "devices",
        "fuzz",
        "oracle",
        "system-oracle",
        "setup",
    ];
    let mut named = 0;
    for (page, text) in pages() {
        let prose = text.lines().filter(|line| !line.starts_with("```"));
        for name in prose.flat_map(|line| line.split('`').skip(1).step_by(2)) {
            let is_path = folders.iter().any(|folder| name.starts_with(&format!("{folder}/")));
            if is_path && !name.contains(|c: char| c.is_whitespace() || c == '*') {
                assert!(root().join(name).exists(), "{} names {name}", page.display());
                named += 1;
            }
        }
    }
    assert!(named > 20, "only {named} files are named");
}

#[test]
fn every_link_leads_somewhere() {
    for (page, text) in pages() {
        for target in between(&text, "](", ")") {
            if !target.contains("://") && !target.starts_with('#') {
                let file = target.split('#').next().unwrap();
                assert!(
                    page.parent().unwrap().join(file).exists(),
                    "{} links to {target}",
                    page.display()
                );
            }
        }
    }
}

#[test]
fn every_page_is_in_the_table_of_contents() {
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    for (page, _) in pages() {
        let Ok(name) = page.strip_prefix(root().join("docs")) else { continue };
        let name = name.display().to_string();
        assert!(name == "SUMMARY.md" || summary.contains(&format!("({name})")), "{name}");
    }
}

#[test]
fn the_number_of_hypercalls_is_told_as_it_is() {
    assert_eq!(lguest_abi::hypercall::COUNT, 17);
    let preparation = fs::read_to_string(root().join("docs/preparation.md")).unwrap();
    assert!(preparation.contains("There are seventeen calls."));
}
