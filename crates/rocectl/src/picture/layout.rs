//! How large everything is and where it goes.

use super::scene::{Group, NumaView, PackageView, Scene};

/// Between boxes, and between a box and what is in it.
pub(crate) const GAP: i32 = 12;
/// A NIC's or GPU's card.
pub(crate) const CARD_WIDTH: i32 = 168;
/// The strip of a card that names its tasks.
pub(crate) const STRIP: i32 = 19;
const NIC_HEIGHT: i32 = 73;
const GPU_HEIGHT: i32 = 42;
/// Between the cards of a group, and around them.
pub(crate) const CARD_GAP: i32 = 8;
/// The line below a group's cards that names it. Below, because wires come from above.
pub(crate) const GROUP_FOOTER: i32 = 12;
/// The line of a box that names it.
pub(crate) const NUMA_HEADER: i32 = 30;
pub(crate) const PACKAGE_HEADER: i32 = 30;
/// A task.
pub(crate) const CHIP_HEIGHT: i32 = 22;
const CHIP_GAP: i32 = 6;
/// Where the lines from tasks to NICs run.
const WIRES: i32 = 46;
/// More tasks than this would be a tangle: their numbers on the cards say it all.
pub(crate) const MOST_WIRED_TASKS: usize = 24;
/// The narrowest NUMA node.
const NUMA_WIDTH: i32 = 2 * (CARD_WIDTH + 2 * CARD_GAP) + GAP;
/// Room for a page on a screen.
const PAGE_WIDTH: i32 = 1760;

/// Places of boxes that were put in rows, and how high that got.
pub(crate) struct Flow {
    pub(crate) places: Vec<(i32, i32)>,
    pub(crate) height: i32,
}

/// Puts boxes in rows that are at most so wide.
pub(crate) fn flow(sizes: &[(i32, i32)], width: i32, gap: i32) -> Flow {
    let (mut x, mut y, mut row) = (0, 0, 0);
    let mut places = Vec::new();
    for &(w, h) in sizes {
        if x > 0 && x + w > width {
            x = 0;
            y += row + gap;
            row = 0;
        }
        places.push((x, y));
        x += w + gap;
        row = row.max(h);
    }
    Flow { places, height: if sizes.is_empty() { 0 } else { y + row } }
}

/// The cards of a group.
pub(crate) struct GroupLayout {
    pub(crate) nics: Vec<(i32, i32)>,
    pub(crate) gpus: Vec<(i32, i32)>,
    pub(crate) nic_height: i32,
    pub(crate) gpu_height: i32,
    pub(crate) size: (i32, i32),
}

/// NICs above GPUs, so that lines from the tasks reach them first.
pub(crate) fn group(group: &Group, with_tasks: bool) -> GroupLayout {
    let strip = if with_tasks { STRIP } else { 0 };
    let (nic_height, gpu_height) = (NIC_HEIGHT + strip, GPU_HEIGHT + strip);
    let columns = group.nics.len().max(group.gpus.len()).clamp(1, 4);
    let cards = |count: usize, height: i32, top: i32| {
        let place = move |i: usize| {
            (
                CARD_GAP + pixels(i % columns) * (CARD_WIDTH + CARD_GAP),
                top + pixels(i / columns) * (height + CARD_GAP),
            )
        };
        let bottom = top + pixels(count.div_ceil(columns)) * (height + CARD_GAP);
        ((0..count).map(place).collect::<Vec<_>>(), bottom)
    };
    let (nics, below) = cards(group.nics.len(), nic_height, CARD_GAP);
    let (gpus, bottom) = cards(group.gpus.len(), gpu_height, below);
    let width = CARD_GAP + pixels(columns) * (CARD_WIDTH + CARD_GAP);
    GroupLayout { nics, gpus, nic_height, gpu_height, size: (width, bottom + GROUP_FOOTER) }
}

/// The CPUs of a NUMA node: small squares in rows of equal length.
pub(crate) struct Cells {
    pub(crate) columns: usize,
    /// From one square to the next.
    pub(crate) step: i32,
    pub(crate) height: i32,
}

fn cells(count: usize, width: i32) -> Cells {
    let step = match count {
        0..=256 => 13,
        257..=512 => 10,
        _ => 7,
    };
    let fitting = usize::try_from(width / step).unwrap_or(1).max(1);
    let fewest = count.div_ceil(fitting).max(1);
    // Threads of a core are often half of the list apart: rows of equal length put them in line.
    let rows = (fewest..fewest + 2).find(|rows| count.is_multiple_of(*rows)).unwrap_or(fewest);
    let height = if count == 0 { 0 } else { pixels(rows) * step };
    Cells { columns: count.div_ceil(rows).max(1), step, height }
}

/// A NUMA node's parts, from its upper left corner.
pub(crate) struct NumaLayout {
    pub(crate) cells: Cells,
    pub(crate) cells_top: i32,
    pub(crate) chips: Vec<(i32, i32)>,
    pub(crate) chip_width: i32,
    pub(crate) groups: Vec<(i32, i32)>,
    pub(crate) height: i32,
}

pub(crate) fn numa(view: &NumaView, width: i32, scene: &Scene) -> NumaLayout {
    let inner = width - 2 * GAP;
    let with_tasks = !scene.tasks.is_empty();
    let cells = cells(view.cpus.len(), inner);
    let cells_top = NUMA_HEADER;
    let mut y = cells_top + cells.height + GAP;
    let chip_width = if view.tasks.len() > 24 { 34 } else { 62 };
    let sizes = vec![(chip_width, CHIP_HEIGHT); view.tasks.len()];
    let down = |flow: &Flow, y: i32| -> Vec<(i32, i32)> {
        flow.places.iter().map(|(x, top)| (GAP + x, y + top)).collect()
    };
    let flown = flow(&sizes, inner, CHIP_GAP);
    let mut chips = down(&flown, y);
    y += flown.height;
    if with_tasks {
        // In a row of NUMA nodes some may have no task; their NICs can still get lines.
        let wired = !view.groups.is_empty() && scene.tasks.len() <= MOST_WIRED_TASKS;
        y += if wired { WIRES } else { GAP };
    }
    let sizes: Vec<(i32, i32)> = view.groups.iter().map(|g| group(g, with_tasks).size).collect();
    let groups = flow(&sizes, inner, GAP);
    let groups_height = groups.height;
    let groups = down(&groups, y);
    y += groups_height + if groups_height > 0 { GAP } else { 0 };
    if flown.height == CHIP_HEIGHT {
        above_nics(view, &groups, chip_width, width - GAP, &mut chips);
    }
    NumaLayout { cells, cells_top, chips, chip_width, groups, height: y }
}

/// Moves a single row of chips so that each is above its NICs as far as there is room; they stay in
/// order.
fn above_nics(view: &NumaView, groups: &[(i32, i32)], chip_width: i32, right: i32, chips: &mut [(i32, i32)]) {
    let middles = |task: usize| {
        view.groups.iter().zip(groups).flat_map(move |(content, (x, _))| {
            let places = group(content, true).nics;
            let own = content.nics.iter().zip(places).filter(move |(nic, _)| nic.tasks.contains(&task));
            own.map(move |(_, (dx, _))| x + dx + CARD_WIDTH / 2).collect::<Vec<_>>()
        })
    };
    let mut free = GAP;
    for (chip, &task) in chips.iter_mut().zip(&view.tasks) {
        let own: Vec<i32> = middles(task).collect();
        let target = own.iter().sum::<i32>() / pixels(own.len().max(1)) - chip_width / 2;
        chip.0 = target.max(free);
        free = chip.0 + chip_width + CHIP_GAP;
    }
    let mut limit = right;
    for chip in chips.iter_mut().rev() {
        chip.0 = chip.0.min(limit - chip_width);
        limit = chip.0 - CHIP_GAP;
    }
}

/// A box and where its parts are, from its own upper left corner.
pub(crate) struct PackageLayout {
    pub(crate) numa_nodes: Vec<NumaPlace>,
    pub(crate) size: (i32, i32),
}

/// Where a NUMA node is in its package.
pub(crate) struct NumaPlace {
    pub(crate) x: i32,
    pub(crate) y: i32,
    /// As high as its row.
    pub(crate) height: i32,
    pub(crate) is_last_row: bool,
}

/// How wide a NUMA node must be for up to four of its groups in a row; the same for all, so that
/// they line up.
pub(crate) fn numa_width(scene: &Scene) -> i32 {
    let views = scene.packages.iter().flat_map(|package| &package.numa_nodes);
    let natural = views.map(|view| {
        let widths: Vec<i32> = view.groups.iter().map(|g| group(g, false).size.0 + GAP).collect();
        let widest = widths.iter().copied().max().unwrap_or(0);
        widths.iter().take(4).sum::<i32>().min(800).max(widest) + GAP
    });
    natural.max().unwrap_or(0).max(NUMA_WIDTH)
}

pub(crate) fn package(view: &PackageView, numa_width: i32, scene: &Scene) -> PackageLayout {
    let (header, border) = if view.title.is_some() { (PACKAGE_HEADER, GAP) } else { (0, 0) };
    let columns = match view.numa_nodes.len() {
        1 => 1,
        _ if view.title.is_none() => columns(numa_width),
        _ if 4 * numa_width <= PAGE_WIDTH => 2,
        _ => 1,
    };
    let heights: Vec<i32> = view.numa_nodes.iter().map(|n| numa(n, numa_width, scene).height).collect();
    let mut y = header;
    let mut numa_nodes = Vec::new();
    let rows = heights.len().div_ceil(columns);
    for (i, row) in heights.chunks(columns).enumerate() {
        let height = row.iter().max().copied().unwrap_or(0);
        numa_nodes.extend((0..row.len()).map(|column| NumaPlace {
            x: border + pixels(column) * (numa_width + GAP),
            y,
            height,
            is_last_row: i + 1 == rows,
        }));
        y += height + GAP;
    }
    let columns = columns.min(view.numa_nodes.len());
    let width = 2 * border + pixels(columns) * (numa_width + GAP) - GAP;
    PackageLayout { numa_nodes, size: (width, y - GAP + border) }
}

/// How many boxes of this width go side by side.
pub(crate) fn columns(width: i32) -> usize {
    if 2 * width + GAP <= PAGE_WIDTH { 2 } else { 1 }
}

/// A count as pixels. No picture has two billion of anything.
pub(crate) fn pixels(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX / 4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_flow_into_rows() {
        let flow = flow(&[(40, 10), (40, 20), (40, 5)], 100, 10);
        assert_eq!(flow.places, [(0, 0), (50, 0), (0, 30)]);
        assert_eq!(flow.height, 35);
    }

    #[test]
    fn cpus_are_in_rows_of_equal_length() {
        let cells = cells(112, 760);
        assert_eq!((cells.columns, cells.height), (56, 26));
        let cells = super::cells(128, 760);
        assert_eq!((cells.columns, cells.height), (32, 52));
    }
}
