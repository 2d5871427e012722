//! The pages of the guide, as files, in the documentation and in the book: their links.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use fancy_regex::Regex;

/// What only the book has: its table of contents, and pages that show files of the root.
const OF_THE_BOOK: [&str; 3] = [
    "docs/SUMMARY.md",
    "docs/introduction.md",
    "docs/contributing.md",
];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The pages, by their paths in the repository.
fn pages() -> BTreeMap<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let in_folder = |folder: &str| {
        let entries = fs::read_dir(root.join(folder)).unwrap();
        entries
            .map(|entry| entry.unwrap().path())
            .collect::<Vec<_>>()
    };
    let mut paths = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
    paths.extend(in_folder("docs"));
    paths.extend(in_folder("docs/methods"));
    paths.retain(|path| path.extension().is_some_and(|end| end == "md"));
    let named = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path.strip_prefix(root).unwrap().to_owned(), text)
    };
    let all = paths.into_iter().map(named);
    all.filter(|(path, _)| !OF_THE_BOOK.iter().any(|own| path == Path::new(own)))
        .collect()
}

fn all_of<'t>(pattern: &str, text: &'t str) -> Vec<&'t str> {
    let pattern = Regex::new(pattern).unwrap();
    let found = pattern.captures_iter(text);
    let first = |captures: fancy_regex::Captures<'t>| captures.get(1).unwrap().as_str();
    found.map(|captures| first(captures.unwrap())).collect()
}

/// The definitions of links at the end of a page that are not of the web.
fn definitions(text: &str) -> Vec<&str> {
    let all = all_of(r"(?m)^\[[^\]\n]+\]: (\S+)$", text);
    all.into_iter().filter(|to| !to.contains("://")).collect()
}

/// What a path from a page's folder names.
fn resolved(page: &Path, to: &str) -> PathBuf {
    let mut path = page.parent().unwrap().to_owned();
    for part in Path::new(to).components() {
        match part {
            Component::ParentDir => assert!(path.pop(), "{to}"),
            part => path.push(part),
        }
    }
    path
}

/// The names by which headings are linked to.
fn anchors(text: &str) -> BTreeSet<String> {
    let outside_of_code = text.split("```").step_by(2).collect::<String>();
    let headings = all_of(r"(?m)^#+ (.+)$", &outside_of_code).into_iter();
    let anchor = |heading: &str| {
        let kept = heading
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

#[test]
fn every_link_leads_to_a_page_and_a_heading() {
    let pages = pages();
    for (page, text) in &pages {
        let own = all_of(r"\]\(#([^)]+)\)", text).into_iter();
        let own = own.map(|anchor| (page.clone(), anchor));
        let others = definitions(text).into_iter().map(|to| {
            let (path, anchor) = to.split_once('#').unwrap_or((to, ""));
            (resolved(page, path), anchor)
        });
        for (path, anchor) in own.chain(others) {
            let at = format!("{}: {}#{anchor}", page.display(), path.display());
            match pages.get(&path) {
                Some(text) => assert!(anchor.is_empty() || anchors(text).contains(anchor), "{at}"),
                None => assert!(
                    Path::new(env!("CARGO_MANIFEST_DIR")).join(&path).exists(),
                    "{at}"
                ),
            }
        }
    }
}

/// On docs.rs there are no files: a link there goes by a definition that `src/guide/links.md` replaces.
#[test]
fn every_link_to_a_file_is_one_to_a_module_in_the_documentation() {
    let links = include_str!("../../src/guide/links.md");
    let known: BTreeSet<&str> = all_of(r"(?m)^\[([^\]\n]+)\]: ", links)
        .into_iter()
        .collect();
    let mut used = BTreeSet::new();
    for (page, text) in &pages() {
        let inline = all_of(r"\]\(([^)#\s]+)[^)\s]*\)", text).into_iter();
        let files = inline.filter(|to| !to.contains("://") && !to.ends_with(".svg"));
        let files: Vec<&str> = files.collect();
        assert!(
            files.is_empty(),
            "{}: write {files:?} as definitions",
            page.display()
        );
        for to in definitions(text) {
            assert!(
                known.contains(to),
                "{}: {to} is not in links.md",
                page.display()
            );
            used.insert(to.to_owned());
        }
    }
    let unused: Vec<_> = known.iter().filter(|to| !used.contains(**to)).collect();
    assert!(unused.is_empty(), "no page has {unused:?}");
}

#[test]
fn every_page_is_in_the_guide() {
    let guide = include_str!("../../src/guide/mod.rs");
    for page in pages()
        .keys()
        .filter(|page| **page != Path::new("README.md"))
    {
        let file = format!("\"../../{}\"", page.display());
        assert!(guide.contains(&file), "{file}");
    }
}

/// `mdbook build` takes what stands in `docs/SUMMARY.md`, and nothing else.
#[test]
fn every_page_is_in_the_book_once() {
    let summary = read("docs/SUMMARY.md");
    let listed = all_of(r"\]\(([^)]+)\)", &summary);
    let once: BTreeSet<PathBuf> = listed.iter().map(|to| Path::new("docs").join(to)).collect();
    assert_eq!(once.len(), listed.len(), "{listed:?}");
    let mut expected: BTreeSet<PathBuf> = pages().into_keys().collect();
    expected.retain(|page| page.starts_with("docs"));
    expected.extend(OF_THE_BOOK[1..].iter().map(PathBuf::from));
    assert_eq!(once, expected);
}

#[test]
fn no_link_leads_out_of_the_book() {
    let pages = pages();
    for (page, text) in pages.iter().filter(|(page, _)| page.starts_with("docs")) {
        for to in definitions(text) {
            let to = resolved(page, to);
            let at = format!("{}: {}", page.display(), to.display());
            assert!(to.starts_with("docs"), "{at}");
        }
    }
}

/// A file of the root that the book includes has links from there; definitions before it make pages of the book of them.
#[test]
fn what_the_book_includes_leads_to_its_pages() {
    for (file, page) in [
        ("README.md", "docs/introduction.md"),
        ("CONTRIBUTING.md", "docs/contributing.md"),
    ] {
        let (text, page) = (read(file), read(page));
        let included = format!("\n{{{{#include ../{file}}}}}\n");
        let own = page.strip_suffix(&included).expect("it ends with the file");
        for to in definitions(&text) {
            let leads_to = match to.strip_prefix("docs/") {
                Some(page) => format!("{page}\n"),
                None if to == "CONTRIBUTING.md" => "contributing.md\n".into(),
                None => "https://".into(),
            };
            let expected = format!("\n[{to}]: {leads_to}");
            assert!(own.contains(&expected), "{file}: {expected}");
        }
    }
}
