//! The node as a picture (SVG): packages, NUMA nodes with their CPUs, PCI switches, GPUs and NICs;
//! for a plan also the tasks, each joined to its NICs.

mod layout;
mod paint;
mod scene;
mod svg;

use std::path::Path;

use anyhow::Context as _;
use roce_node::Node;

use self::layout::{CARD_WIDTH, CHIP_HEIGHT, GAP, MOST_WIRED_TASKS, pixels};
use self::scene::{Group, NumaView, PackageView, Scene};
use self::svg::{Ink, Paint, Rect, Svg};
use crate::plan::{Planned, class_line};
use crate::show;
use crate::survey::Judged;

/// Around everything.
const MARGIN: i32 = 24;
/// More reasons than this are for `rocectl show`.
const MOST_PROBLEMS: usize = 5;

/// Writes the picture.
pub(crate) fn write(path: &Path, svg: &str) -> anyhow::Result<()> {
    std::fs::write(path, svg).with_context(|| format!("--svg={}: can't write it", path.display()))
}

/// Draws the node, or the plan for it. `note` is said below the title.
pub(crate) fn draw(
    name: &str,
    node: &Node,
    ports: &[Judged<'_>],
    plan: Option<&Planned<'_>>,
    note: Option<&str>,
) -> String {
    let scene = Scene::of(node, ports, plan);
    let mut painter = Painter::default();
    let (title, subtitle) = headings(name, node, ports, plan);
    let mut y = MARGIN + 20;
    painter.cards.text(MARGIN, y, paint::TITLE, &title);
    for line in [Some(subtitle.as_str()), note].into_iter().flatten() {
        y += 22;
        painter.cards.text(MARGIN, y, paint::SUBTITLE, line);
    }
    y += 18;
    let (width, bottom) = painter.packages(&scene, y);
    y = painter.homeless(&scene, width, bottom);
    y = painter.footer(&scene, node, ports, y);
    let texts = [title.as_str(), subtitle.as_str(), note.unwrap_or_default()];
    let widest = texts.iter().zip([paint::TITLE, paint::SUBTITLE, paint::SUBTITLE]);
    let widest = widest.map(|(text, ink)| ink.width(text)).max().unwrap_or(0);
    let page = (width + 2 * MARGIN).max(widest + 2 * MARGIN).max(painter.rightmost + MARGIN);
    painter.finish(page, y + MARGIN, &title)
}

fn headings(name: &str, node: &Node, ports: &[Judged<'_>], plan: Option<&Planned<'_>>) -> (String, String) {
    let summary = show::summary(node, Some(ports));
    let Some(plan) = plan else { return (name.to_owned(), summary) };
    let mut title = format!("{} on {name}", show::count(plan.tasks.len(), "task"));
    if !plan.asked.is_empty() {
        title += &format!(": {}", plan.asked);
    }
    let class = plan.plan.class.as_ref().map_or_else(|| "no traffic class".to_owned(), class_line);
    (title, format!("{class} \u{b7} {summary}"))
}

/// The layers of the picture, lowest first: boxes, then lines, then what the lines join.
#[derive(Default)]
struct Painter {
    boxes: Svg,
    wires: Svg,
    cards: Svg,
    /// Where tasks are.
    chips: Vec<(usize, Rect)>,
    /// Where NICs are, with their tasks.
    nics: Vec<(Vec<usize>, Rect)>,
    rightmost: i32,
}

impl Painter {
    /// Returns how wide and how far down they are.
    fn packages(&mut self, scene: &Scene, top: i32) -> (i32, i32) {
        let numa_width = layout::numa_width(scene);
        let layouts: Vec<_> =
            scene.packages.iter().map(|package| layout::package(package, numa_width, scene)).collect();
        let widest = layouts.iter().map(|layout| layout.size.0).max().unwrap_or(0);
        let columns = layout::columns(widest).min(layouts.len().max(1));
        let mut y = top;
        for (packages, layouts) in scene.packages.chunks(columns).zip(layouts.chunks(columns)) {
            let height = layouts.iter().map(|layout| layout.size.1).max().unwrap_or(0);
            for (column, (package, layout)) in packages.iter().zip(layouts).enumerate() {
                let x = MARGIN + pixels(column) * (widest + GAP);
                let rect = Rect { x, y, width: layout.size.0, height };
                self.package(package, layout, rect, numa_width, scene);
            }
            y += height + GAP;
        }
        (pixels(columns) * (widest + GAP) - GAP, y)
    }

    fn package(
        &mut self,
        package: &PackageView,
        layout: &layout::PackageLayout,
        rect: Rect,
        numa_width: i32,
        scene: &Scene,
    ) {
        if let Some(title) = &package.title {
            self.boxes.rect(rect, 10, paint::PACKAGE, "");
            self.cards.text(rect.x + GAP, rect.y + 21, paint::TITLE_OF_BOX, title);
        }
        let spare = rect.height - layout.size.1;
        for (numa, place) in package.numa_nodes.iter().zip(&layout.numa_nodes) {
            let height = place.height + if place.is_last_row { spare } else { 0 };
            let rect = Rect { x: rect.x + place.x, y: rect.y + place.y, width: numa_width, height };
            self.numa(numa, rect, scene);
        }
    }

    fn numa(&mut self, numa: &NumaView, rect: Rect, scene: &Scene) {
        let Rect { x, y, width, .. } = rect;
        let layout = layout::numa(numa, width, scene);
        self.boxes.rect(rect, 8, paint::NUMA, "");
        let name = format!("NUMA {}", numa.id);
        self.cards.text(x + GAP, y + 20, paint::HEADING, &name);
        let cpus = match numa.cpus.len() {
            0 => "no CPU".to_owned(),
            count => format!("{}: {}", show::count(count, "CPU"), numa.cpus),
        };
        let left = x + GAP + paint::HEADING.width(&name) + GAP;
        self.cards.text(left, y + 20, paint::NOTE, &paint::NOTE.fit(&cpus, x + width - GAP - left));
        for (i, cpu) in numa.cpus.iter().enumerate() {
            let (column, row) = (pixels(i % layout.cells.columns), pixels(i / layout.cells.columns));
            let step = layout.cells.step;
            let rect = Rect {
                x: x + GAP + column * step,
                y: y + layout.cells_top + row * step,
                width: step - 2,
                height: step - 2,
            };
            let (paint, title) = cpu_paint(cpu, scene);
            self.cards.rect(rect, 2, paint, &title);
        }
        for (&task, &(dx, dy)) in numa.tasks.iter().zip(&layout.chips) {
            self.chip(
                scene,
                task,
                Rect { x: x + dx, y: y + dy, width: layout.chip_width, height: CHIP_HEIGHT },
            );
        }
        for (group, &(dx, dy)) in numa.groups.iter().zip(&layout.groups) {
            self.group(group, x + dx, y + dy, scene);
        }
    }

    fn chip(&mut self, scene: &Scene, task: usize, rect: Rect) {
        let (colour, text) = paint::task(task);
        let view = &scene.tasks[task];
        let paint = Paint { fill: colour, stroke: "none", dashed: false };
        self.cards.rect(rect, 6, paint, &format!("task {}: {}", view.local_rank, view.details));
        let label =
            if rect.width < 50 { view.local_rank.to_string() } else { format!("task {}", view.local_rank) };
        let ink = Ink::new(11, text).bold().centred();
        let middle = rect.x + rect.width / 2;
        self.cards.text(middle, rect.y + 15, ink, &ink.fit(&label, rect.width));
        self.chips.push((task, rect));
    }

    fn group(&mut self, group: &Group, x: i32, y: i32, scene: &Scene) {
        let layout = layout::group(group, !scene.tasks.is_empty());
        let (width, height) = layout.size;
        let paint = if group.is_switch { paint::SWITCH } else { paint::HOST_BRIDGE };
        self.boxes.rect(Rect { x, y, width, height }, 6, paint, "");
        let label = paint::PLACE.fit(&group.label, width - 2 * layout::CARD_GAP);
        self.cards.text(x + layout::CARD_GAP, y + height - 7, paint::PLACE, &label);
        for (nic, (dx, dy)) in group.nics.iter().zip(&layout.nics) {
            let rect = Rect { x: x + dx, y: y + dy, width: CARD_WIDTH, height: layout.nic_height };
            self.nic(nic, rect, scene);
        }
        for (gpu, (dx, dy)) in group.gpus.iter().zip(&layout.gpus) {
            let rect = Rect { x: x + dx, y: y + dy, width: CARD_WIDTH, height: layout.gpu_height };
            self.cards.rect(rect, 5, paint::GPU, "");
            self.cards.text(rect.x + 10, rect.y + 17, paint::NAME, &gpu.title);
            let place = paint::FACT.fit(&gpu.place, CARD_WIDTH - 20);
            self.cards.text(rect.x + 10, rect.y + 33, paint::FACT, &place);
            self.owners(&gpu.tasks, rect, scene);
        }
    }

    fn nic(&mut self, nic: &scene::NicView, rect: Rect, scene: &Scene) {
        let (paint, dot) =
            if nic.is_usable { (paint::NIC, paint::UP) } else { (paint::UNUSED_NIC, paint::DOWN) };
        self.cards.rect(rect, 5, paint, &nic.details);
        self.cards.circle(rect.x + rect.width - 14, rect.y + 13, 4, dot);
        let room = CARD_WIDTH - 20;
        let mut lines = vec![
            (paint::NAME, paint::NAME.fit(&nic.port, room - 18)),
            (paint::FACT, paint::FACT.fit(&nic.facts, room)),
        ];
        if nic.is_usable {
            lines.push((paint::FACT, paint::FACT.fit(&nic.role, room)));
            lines.push((paint::LABEL, paint::LABEL.fit(&nic.place, room)));
        } else {
            let wrapped = paint::REASON.wrap(&nic.role, room);
            lines.extend(wrapped.into_iter().take(2).map(|line| (paint::REASON, line)));
        }
        for ((ink, text), y) in lines.into_iter().zip([18, 34, 50, 65]) {
            self.cards.text(rect.x + 10, rect.y + y, ink, &text);
        }
        self.owners(&nic.tasks, rect, scene);
        self.nics.push((nic.tasks.clone(), rect));
    }

    /// The tasks that a card belongs to, as numbers in their colours along its lower edge.
    fn owners(&mut self, tasks: &[usize], card: Rect, scene: &Scene) {
        if tasks.is_empty() {
            return;
        }
        let y = card.y + card.height - layout::STRIP;
        let ranks = || tasks.iter().map(|&task| scene.tasks[task].local_rank as usize);
        let pill = 26;
        if pixels(tasks.len()) * pill > CARD_WIDTH - 46 || ranks().any(|rank| rank > 999) {
            let list: roce_types::CpuSet = ranks().collect();
            let text = format!("{}: {list}", show::count(tasks.len(), "task"));
            self.cards.text(
                card.x + 10,
                y + 11,
                paint::FACT.bold(),
                &paint::FACT.bold().fit(&text, CARD_WIDTH - 20),
            );
            return;
        }
        self.cards.text(card.x + 10, y + 11, paint::LABEL, if tasks.len() == 1 { "task" } else { "tasks" });
        for (i, &task) in tasks.iter().enumerate() {
            let (colour, text) = paint::task(task);
            let rect = Rect { x: card.x + 42 + pixels(i) * pill, y, width: pill - 3, height: 14 };
            self.cards.rect(rect, 4, Paint { fill: colour, stroke: "none", dashed: false }, "");
            let ink = Ink::new(10, text).bold().centred();
            self.cards.text(rect.x + rect.width / 2, y + 11, ink, &scene.tasks[task].local_rank.to_string());
        }
    }

    /// The devices of no known NUMA node. Returns how far down they are.
    fn homeless(&mut self, scene: &Scene, width: i32, top: i32) -> i32 {
        if scene.homeless.is_empty() {
            return top;
        }
        let with_tasks = !scene.tasks.is_empty();
        let sizes: Vec<_> = scene.homeless.iter().map(|g| layout::group(g, with_tasks).size).collect();
        let width = sizes.iter().map(|size| size.0 + 2 * GAP).max().unwrap_or(0).max(width);
        let flow = layout::flow(&sizes, width - 2 * GAP, GAP);
        let height = layout::PACKAGE_HEADER + flow.height + GAP;
        let frame = Paint { dashed: true, ..paint::PACKAGE };
        self.boxes.rect(Rect { x: MARGIN, y: top, width, height }, 10, frame, "");
        self.cards.text(MARGIN + GAP, top + 21, paint::TITLE_OF_BOX, "NUMA node not known");
        for (group, (x, y)) in scene.homeless.iter().zip(flow.places) {
            self.group(group, MARGIN + GAP + x, top + layout::PACKAGE_HEADER + y, scene);
        }
        self.rightmost = self.rightmost.max(MARGIN + width);
        top + height + GAP
    }

    /// What the marks mean, and what could not be read.
    fn footer(&mut self, scene: &Scene, node: &Node, ports: &[Judged<'_>], top: i32) -> i32 {
        let mut entries: Vec<(Paint, &str)> = Vec::new();
        if ports.iter().any(|port| port.nic.is_ok()) {
            entries.push((paint::NIC, "NIC for tasks"));
        }
        if ports.iter().any(|port| port.nic.is_err()) {
            entries.push((paint::UNUSED_NIC, "port that tasks don't get"));
        }
        if !node.gpus.is_empty() {
            entries.push((paint::GPU, "GPU"));
        }
        if scene.tasks.is_empty() {
            entries.push((paint::CPU, "CPU"));
        } else if node.cpus.iter().any(|cpu| !scene.tasks.iter().any(|task| task.cpus.contains(cpu))) {
            entries.push((paint::CPU, "CPU without a task"));
        }
        if scene.tasks.iter().enumerate().any(|(i, task)| {
            scene.tasks[i + 1..].iter().any(|other| !other.cpus.intersection(&task.cpus).is_empty())
        }) {
            entries.push((paint::SHARED_CPU, "CPU of several tasks"));
        }
        let (mut x, y) = (MARGIN, top + 8);
        for (paint, text) in entries {
            self.cards.rect(Rect { x, y, width: 14, height: 14 }, 3, paint, "");
            self.cards.text(x + 20, y + 11, paint::NOTE, text);
            x += 20 + paint::NOTE.width(text) + 20;
        }
        self.rightmost = self.rightmost.max(x);
        let mut y = y + 14;
        let mut lines: Vec<String> = Vec::new();
        if !scene.memory_only.is_empty() {
            lines.push(format!("NUMA nodes with memory only: {}", show::list(&scene.memory_only)));
        }
        lines.extend(node.problems.iter().take(MOST_PROBLEMS).map(|problem| format!("problem: {problem}")));
        for line in lines {
            y += 20;
            let line = paint::NOTE.fit(&line, 1600);
            self.cards.text(MARGIN, y, paint::NOTE, &line);
            self.rightmost = self.rightmost.max(MARGIN + paint::NOTE.width(&line));
        }
        y
    }

    fn finish(mut self, width: i32, height: i32, title: &str) -> String {
        if self.chips.len() <= MOST_WIRED_TASKS {
            for (task, from) in &self.chips {
                for (_, to) in self.nics.iter().filter(|(tasks, _)| tasks.contains(task)) {
                    self.wires.join(*from, *to, paint::task(*task).0);
                }
            }
        }
        let mut all = self.boxes;
        all.append(&self.wires);
        all.append(&self.cards);
        all.finish(width, height, title)
    }
}

fn cpu_paint(cpu: usize, scene: &Scene) -> (Paint, String) {
    let mut tasks = (0..scene.tasks.len()).filter(|&task| scene.tasks[task].cpus.contains(cpu));
    match (tasks.next(), tasks.next()) {
        (None, _) => (paint::CPU, format!("CPU {cpu}")),
        (Some(task), None) => {
            let paint = Paint { fill: paint::task(task).0, stroke: "none", dashed: false };
            (paint, format!("CPU {cpu}: task {}", scene.tasks[task].local_rank))
        }
        (Some(_), Some(_)) => (paint::SHARED_CPU, format!("CPU {cpu}: several tasks")),
    }
}
