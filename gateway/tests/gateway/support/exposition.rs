//! A strict reader of Prometheus' text format, version 0.0.4: what it takes, every scraper takes.

use std::collections::BTreeMap;

/// Samples by name and labels as written.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// Kind of each family.
    pub(crate) families: BTreeMap<String, String>,
    samples: BTreeMap<String, String>,
}

impl Page {
    /// The sample of `name` or `name{label="value"}`, which is a whole number.
    #[track_caller]
    pub(crate) fn whole(&self, sample: &str) -> u64 {
        let value = self.samples.get(sample).unwrap_or_else(|| panic!("there is no {sample}: {self:#?}"));
        value.parse().unwrap_or_else(|error| panic!("{sample} {value}: {error}"))
    }

    /// Reads a page; a panic says what is wrong with it.
    #[track_caller]
    pub(crate) fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line ends");
        let mut page = Self::default();
        let (mut helped, mut current) = (None, None);
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a name has a help");
                assert!(!help.is_empty() && !page.families.contains_key(name), "{line}");
                helped = Some(name.to_owned());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a name has a type");
                assert!(is_name(name) && name.starts_with("cairn_"), "{line}");
                assert_eq!(helped.as_deref(), Some(name), "the help comes right before the type");
                assert!(["gauge", "counter"].contains(&kind), "{line}");
                assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
                assert!(page.families.insert(name.to_owned(), kind.to_owned()).is_none(), "twice: {line}");
                current = Some(name.to_owned());
            } else {
                page.sample(line, current.as_deref());
            }
        }
        page
    }

    fn sample(&mut self, line: &str, family: Option<&str>) {
        let (sample, value) = line.rsplit_once(' ').expect("a sample has a value");
        let name = sample.split('{').next().unwrap();
        assert_eq!(Some(name), family, "a sample belongs to the family above it: {line}");
        check_labels(&sample[name.len()..]);
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert!(self.samples.insert(sample.to_owned(), value.to_owned()).is_none(), "twice: {line}");
    }
}

fn is_name(name: &str) -> bool {
    !name.starts_with(|first: char| first.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// `{a="x",b="y"}`, or nothing.
fn check_labels(labels: &str) {
    if labels.is_empty() {
        return;
    }
    let mut rest = labels.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).expect("braces");
    let mut names = Vec::new();
    loop {
        let (name, value) = rest.split_once("=\"").expect("a label has a value");
        assert!(is_name(name) && !names.contains(&name), "{labels}");
        names.push(name);
        let mut characters = value.char_indices();
        let end = loop {
            match characters.next().expect("a value ends") {
                (at, '"') => break at,
                (_, '\\') => {
                    let escaped = characters.next().map(|(_, escaped)| escaped);
                    assert!(matches!(escaped, Some('\\' | '"' | 'n')), "{labels}");
                }
                _ => {}
            }
        };
        match value[end + 1..].strip_prefix(',') {
            Some(more) => rest = more,
            None => return assert!(value[end + 1..].is_empty(), "{labels}"),
        }
    }
}
