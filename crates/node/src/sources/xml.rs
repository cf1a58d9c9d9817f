//! XML into a small tree, within bounds: no entities of a DTD, no depth or number of elements that
//! a topology doesn't have.

use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};

/// hwloc nests about 25 elements on the largest machines.
const MAX_DEPTH: usize = 200;
/// hwloc writes about ten elements per CPU.
const MAX_ELEMENTS: usize = 500_000;
/// hwloc writes at most about twenty.
const MAX_ATTRIBUTES: usize = 64;

/// Why a text is not what it should be, and in which line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) line: usize,
    pub(super) problem: String,
}

impl Problem {
    pub(super) fn new(element: &Element, problem: impl Into<String>) -> Self {
        Self { line: element.line, problem: problem.into() }
    }
}

/// An element with what is in it.
#[derive(Debug, Default)]
pub(super) struct Element {
    pub(super) name: String,
    attributes: Vec<(String, String)>,
    pub(super) children: Vec<Element>,
    /// The text between the tags, without that of the children.
    pub(super) text: String,
    /// From 1.
    pub(super) line: usize,
}

impl Element {
    /// The attribute's value, `None` where the element doesn't have it.
    pub(super) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The value of an attribute that must be there.
    pub(super) fn required(&self, name: &str) -> Result<&str, Problem> {
        let missing = || Problem::new(self, format!("<{}> has no attribute {name}", self.name));
        self.attribute(name).ok_or_else(missing)
    }

    /// The children of this name.
    pub(super) fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.name == name)
    }
}

/// The root element of a text.
pub(super) fn parse(text: &str) -> Result<Element, Problem> {
    let mut lines = Lines { text, at: 0, line: 1 };
    let mut reader = quick_xml::Reader::from_str(text);
    // The elements that are open, outermost first. The first is the document itself.
    let mut open = vec![Element::default()];
    let mut elements = 0;
    loop {
        let event = reader.read_event();
        // Where an error is, or the end of what was read. Within a topology tags span no lines.
        let line = lines.of(match event {
            Ok(_) => reader.buffer_position(),
            Err(_) => reader.error_position(),
        });
        let problem = |problem: String| Problem { line, problem };
        match event.map_err(|error| problem(error.to_string()))? {
            Event::Start(tag) => {
                elements += 1;
                if open.len() > MAX_DEPTH || elements > MAX_ELEMENTS {
                    return Err(problem(format!(
                        "more than {MAX_DEPTH} levels or {MAX_ELEMENTS} elements: this is no topology"
                    )));
                }
                open.push(element(&tag, line)?);
            }
            Event::Empty(tag) => {
                elements += 1;
                let element = element(&tag, line)?;
                open.last_mut().ok_or_else(|| problem("nothing is open".into()))?.children.push(element);
                if elements > MAX_ELEMENTS {
                    return Err(problem(format!("more than {MAX_ELEMENTS} elements: this is no topology")));
                }
            }
            Event::End(_) => {
                // The reader has compared the names.
                let (Some(closed), Some(parent)) = (open.pop(), open.last_mut()) else {
                    return Err(problem("an element is closed that isn't open".into()));
                };
                parent.children.push(closed);
            }
            Event::Text(piece) => {
                if let Some(element) = open.last_mut() {
                    element.text.push_str(piece.xml10_content().trim());
                    element.text.push(' ');
                }
            }
            Event::GeneralRef(_) | Event::CData(_) => {
                return Err(problem("entities and CDATA sections have no place in a topology".into()));
            }
            // A DTD is neither read nor fetched.
            Event::DocType(_) | Event::Decl(_) | Event::PI(_) | Event::Comment(_) => {}
            Event::Eof => break,
        }
    }
    let line = lines.of(text.len() as u64);
    let document = match (open.pop(), open.pop()) {
        (Some(document), None) => document,
        (Some(unclosed), _) => {
            let problem = format!(
                "<{}> of line {} is never closed: the file is cut short",
                unclosed.name, unclosed.line
            );
            return Err(Problem { line, problem });
        }
        (None, _) => return Err(Problem { line, problem: "nothing is open".into() }),
    };
    if !document.text.trim().is_empty() {
        return Err(Problem { line: 1, problem: "text outside of the root element".into() });
    }
    let mut roots = document.children.into_iter();
    match (roots.next(), roots.next()) {
        (Some(root), None) => Ok(root),
        (None, _) => Err(Problem { line, problem: "no element in it".into() }),
        (_, Some(second)) => Err(Problem::new(&second, "a second root element")),
    }
}

fn element(tag: &BytesStart<'_>, line: usize) -> Result<Element, Problem> {
    let problem = |problem: String| Problem { line, problem };
    let mut attributes: Vec<(String, String)> = Vec::new();
    // The reader's own check for duplicates takes quadratic time before we can count.
    for attribute in tag.attributes().with_checks(false) {
        let attribute = attribute.map_err(|error| problem(error.to_string()))?;
        let value = attribute.normalized_value(XmlVersion::Implicit1_0);
        let value = value.map_err(|error| problem(error.to_string()))?.into_owned();
        let key = attribute.key.into_inner().to_owned();
        if attributes.len() == MAX_ATTRIBUTES {
            return Err(problem(format!("more than {MAX_ATTRIBUTES} attributes")));
        }
        if attributes.iter().any(|(known, _)| *known == key) {
            return Err(problem(format!("attribute {key} twice")));
        }
        attributes.push((key, value));
    }
    let name = tag.name().into_inner().to_owned();
    Ok(Element { name, attributes, line, ..Element::default() })
}

/// Counts the lines up to a position, which never goes back.
struct Lines<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

impl Lines<'_> {
    fn of(&mut self, position: u64) -> usize {
        let end = usize::try_from(position).unwrap_or(usize::MAX).min(self.text.len());
        if let Some(passed) = self.text.as_bytes().get(self.at..end) {
            self.line += passed.iter().filter(|&&byte| byte == b'\n').count();
            self.at = end;
        }
        self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        let problem = parse(text).unwrap_err();
        format!("line {}: {}", problem.line, problem.problem)
    }

    #[test]
    fn elements_have_their_attributes_text_and_line() {
        let text = "<?xml version=\"1.0\"?>\n<!DOCTYPE a SYSTEM \"a.dtd\">\n<a x='1 &lt; 2'>\n <b>3 4 </b>\n <c/>\n</a>\n";
        let root = parse(text).unwrap();
        assert_eq!((root.name.as_str(), root.line, root.attribute("x")), ("a", 3, Some("1 < 2")));
        let children: Vec<_> =
            root.children.iter().map(|child| (child.name.as_str(), child.line, child.text.trim())).collect();
        assert_eq!(children, [("b", 4, "3 4"), ("c", 5, "")]);
    }

    #[test]
    fn what_is_no_xml_is_told_with_its_line() {
        insta::assert_snapshot!(
            [
                "",
                "text",
                "<a>\n<b>\n</b>\n",
                "<a>\n</b>",
                "<a/>\n<b/>",
                "<a>\n&lol;</a>",
                "<a x='&lol;'/>",
                "<a x='1' x='2'/>",
                "<a",
                "<a x=1>",
                "</a>",
            ]
            .map(|text| format!("{text:?}\n    {}", problem(text)))
            .join("\n"),
            @r#"
        ""
            line 1: no element in it
        "text"
            line 1: text outside of the root element
        "<a>\n<b>\n</b>\n"
            line 4: <a> of line 1 is never closed: the file is cut short
        "<a>\n</b>"
            line 2: ill-formed document: expected `</a>`, but `</b>` was found
        "<a/>\n<b/>"
            line 2: a second root element
        "<a>\n&lol;</a>"
            line 2: entities and CDATA sections have no place in a topology
        "<a x='&lol;'/>"
            line 1: at 1..4: unrecognized entity `lol`
        "<a x='1' x='2'/>"
            line 1: attribute x twice
        "<a"
            line 1: syntax error: tag not closed: `>` not found before end of input
        "<a x=1>"
            line 1: position 4: attribute value must be enclosed in `"` or `'`
        "</a>"
            line 1: ill-formed document: close tag `</a>` does not match any open tag
        "#
        );
    }

    #[test]
    fn hostile_texts_end_soon() {
        let deep = "<a>".repeat(1_000_000);
        assert!(problem(&deep).contains("levels"));
        let wide = format!("<a>{}", "<a/>".repeat(MAX_ELEMENTS));
        assert!(problem(&wide).contains("elements"));
        let attributes: String = (0..200_000).map(|i| format!(" a{i}=''")).collect();
        assert!(problem(&format!("<a{attributes}/>")).contains("attributes"));
        // The billion laughs: the DTD's entities are unknown, because it isn't read.
        let laughs = "<!DOCTYPE a [<!ENTITY l \"ha\"><!ENTITY m \"&l;&l;&l;\">]>\n<a x=\"&m;\"/>";
        assert!(problem(laughs).contains('m'), "{}", problem(laughs));
    }
}
