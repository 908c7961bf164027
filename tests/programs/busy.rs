//! Allocates without end: hash maps, trees, formatting, comparators, closures, recursion, panics that are caught, in two
//! threads. Told to begin by a line.

use std::{collections::BTreeMap, collections::HashMap, hint::black_box, panic, thread};

fn recurses(depth: usize, leaf: &dyn Fn(usize) -> String) -> String {
    let block = black_box(vec![depth; depth + 1]);
    if depth == 0 { leaf(block.len()) } else { recurses(depth - 1, &|n| format!("{}{}", leaf(n), block.len())) }
}

fn works() {
    for round in 0.. {
        let mut names: Vec<String> = (0..40).map(|i| format!("name {}", (round + i * 7919) % 101)).collect();
        names.sort_by_key(|name| name.to_uppercase());
        names.sort_by(|a, b| (a.clone() + b).cmp(&(b.clone() + a)));
        let map: HashMap<String, Vec<usize>> = names.iter().map(|name| (name.clone(), vec![round; 10])).collect();
        let tree: BTreeMap<&String, Box<usize>> = map.iter().map(|(name, list)| (name, Box::new(list.len()))).collect();
        black_box(tree);
        black_box(recurses(round % 25, &|n| n.to_string()));
        if round % 16 == 0 {
            let caught = panic::catch_unwind(|| {
                let list: Vec<usize> = Vec::new();
                list[black_box(round)]
            });
            black_box(caught.is_err());
        }
    }
}

fn main() {
    panic::set_hook(Box::new(|_| ()));
    println!("waiting");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    thread::spawn(works);
    works();
}
