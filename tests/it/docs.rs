//! The pages of the guide: their links, and what the README says that can be counted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use fancy_regex::Regex;

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
    paths.into_iter().map(named).collect()
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
