//! `--svg`: texts are inside the page and none lies on another, on every machine.

use crate::common::{Folder, read};

/// A text and the box that it needs, by the measure of a wide font.
#[derive(Debug)]
#[expect(dead_code, reason = "the content is read where a test fails")]
struct Text {
    content: String,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

fn attribute<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!(" {name}=\""))?;
    rest.split_once('"').map(|(value, _)| value)
}

fn number(line: &str, name: &str) -> f64 {
    attribute(line, name).unwrap().parse().unwrap()
}

fn texts(svg: &str) -> Vec<Text> {
    let lines = svg.lines().filter(|line| line.starts_with("<text "));
    lines
        .map(|line| {
            let content = line.split_once('>').unwrap().1.trim_end_matches("</text>").to_owned();
            let (x, y, size) = (number(line, "x"), number(line, "y"), number(line, "font-size"));
            let shown = content.replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&");
            let width = shown.chars().count() as f64 * size * 0.6;
            let left = if attribute(line, "text-anchor").is_some() { x - width / 2.0 } else { x };
            Text { content, left, right: left + width, top: y - size * 0.75, bottom: y + size * 0.2 }
        })
        .collect()
}

fn check(name: &str, svg: &str) {
    let page = svg.lines().next().unwrap();
    let (width, height) = (number(page, "width"), number(page, "height"));
    let texts = texts(svg);
    assert!(texts.len() > 3, "{name}");
    for (i, text) in texts.iter().enumerate() {
        let inside = text.left >= 0.0 && text.right <= width && text.top >= 0.0 && text.bottom <= height;
        assert!(inside, "{name}: {text:?} is not inside {width}x{height}");
        for other in &texts[i + 1..] {
            let apart = text.right <= other.left
                || other.right <= text.left
                || text.bottom <= other.top
                || other.bottom <= text.top;
            assert!(apart, "{name}: {text:?} lies on {other:?}");
        }
    }
}

#[test]
fn texts_never_overlap_and_stay_on_the_page() {
    let machines: Vec<&str> = roce_machines::all().iter().map(|machine| machine.name).collect();
    let folder = Folder::with(&machines);
    for machine in machines {
        for words in ["show", "plan -n1", "plan -n4", "plan -n4 --roce-nics=all --roce-tc=3"] {
            let output =
                folder.run(&format!("{words} --link-layer any --topology {machine} --svg out.svg"), &[]);
            // No plan, no picture: machines without a usable port, or with fewer CPUs.
            if output.status.success() {
                check(&format!("{words} {machine}"), &read(&folder.path("out.svg")));
            } else {
                assert!(words.starts_with("plan"), "{words} {machine}: {output:?}");
            }
        }
    }
}

#[test]
fn many_tasks_have_room_too() {
    let folder = Folder::with(&["dgx_h100", "sixteen_nics"]);
    for words in ["-n16", "-n24", "-n25", "-n100", "-n200"] {
        for machine in ["dgx_h100", "sixteen_nics"] {
            let output = folder.run(&format!("plan {words} --topology {machine} --svg out.svg"), &[]);
            assert!(output.status.success(), "{output:?}");
            check(&format!("{words} {machine}"), &read(&folder.path("out.svg")));
        }
    }
}

/// So that a change of the picture is seen by whoever makes it.
#[test]
fn the_picture_of_a_laptop() {
    let folder = Folder::with(&["soft_roce_laptop"]);
    assert!(folder.run("plan -n2 --topology soft_roce_laptop --svg out.svg", &[]).status.success());
    insta::assert_snapshot!(read(&folder.path("out.svg")));
}
