//! Every part of the comparison can fail.

use super::*;
use serde_json::{Value, json};

fn native(function: Option<&str>, module: &str) -> Value {
    json!({ "kind": "native", "function": function, "file": null, "line": null, "module": module,
            "address": "0x1", "offset": 1, "inlined": false })
}

fn python(function: &str, line: u32) -> Value {
    json!({ "kind": "python", "function": function, "file": "/a.py", "line": line, "module": null,
            "address": null, "offset": null, "inlined": false })
}

/// A call through `sorted`, as a report has it.
fn row() -> Value {
    json!({
        "pid": 7, "domain": "malloc", "outstanding_count": 1, "outstanding_bytes": 1000,
        "alloc_count": 1, "alloc_bytes": 1000, "free_count": 0, "free_bytes": 0,
        "bytes_are": "requested", "oldest_age_ms": 9, "newest_age_ms": 1, "truncated": null,
        "frames": [
            native(Some("_PyObject_Calloc"), "/usr/bin/python3.11"), python("key", 3),
            native(Some("list_sort_impl"), "/usr/bin/python3.11"), python("main", 5), python("<module>", 9),
            native(Some("PyEval_EvalCode"), "/usr/bin/python3.11"), native(Some("_start"), "/usr/bin/python3.11")
        ]
    })
}

fn planted() -> Value {
    json!({ "size": 1000, "via": [[0, "sort"]],
            "stack": [["key", "/a.py", 3], ["main", "/a.py", 5], ["<module>", "/a.py", 9]] })
}

fn wrong(planted: Value, row: Value) -> Vec<String> {
    let planted: Planted = serde_json::from_value(planted).unwrap();
    let row: Row = serde_json::from_value(row).unwrap();
    let interpreter = Interpreter { minor: 11, stripped: false };
    wrong_with(&planted, &row, interpreter).into_iter().chain(interpreter_left_over(&row)).collect()
}

#[test]
fn a_stack_that_is_the_programs_own_is_accepted() {
    assert_eq!(wrong(planted(), row()), [""; 0]);
}

#[test]
fn every_part_of_a_stack_is_compared() {
    for (pointer, value) in [
        ("/frames/1/line", json!(4)),
        ("/frames/1/line", Value::Null),
        ("/frames/3/function", json!("other")),
        ("/frames/4/file", json!("/b.py")),
        ("/frames/4/kind", json!("native")),
        ("/frames/2/function", json!("list_append")),
        ("/frames/2", python("key", 3)),
        ("/frames/5/function", json!("_PyEval_EvalFrameDefault")),
        ("/frames/5/function", Value::Null),
        ("/frames/6/function", json!("main")),
        ("/frames/6/module", json!("/usr/lib/libc.so.6")),
        ("/truncated", json!("no unwind table")),
        ("/domain", json!("mmap")),
    ] {
        let mut broken = row();
        *broken.pointer_mut(pointer).unwrap() = value;
        assert_ne!(wrong(planted(), broken), [""; 0], "{pointer}");
    }
    let direct = json!({ "size": 1000, "direct": 1, "stack": planted()["stack"] });
    assert_ne!(wrong(direct, row()), [""; 0], "C lies between");
}

#[test]
fn a_stack_that_was_cut_keeps_its_inner_end() {
    let calls = (0..20).map(|_| python("down", 3));
    let mut cut = row();
    cut["frames"] = calls.collect();
    cut["truncated"] = json!("too deep");
    let down = |count: usize| vec![json!(["down", "/a.py", 3]); count];
    let deep = |stack: Vec<Value>| json!({ "size": 1000, "deep": true, "stack": stack });
    assert_eq!(wrong(deep(down(400)), cut.clone()), [""; 0]);
    assert_ne!(wrong(deep(down(10)), cut.clone()), [""; 0], "more than there were");
    cut["truncated"] = Value::Null;
    assert_ne!(wrong(deep(down(400)), cut), [""; 0], "a cut stack is marked");
}

#[test]
fn a_greenlet_may_stand_on_the_stack_that_started_it() {
    let below = json!({ "size": 1000, "stack": [["key", "/a.py", 3]],
                        "below": [["main", "/a.py", 5], ["<module>", "/a.py", 9]] });
    assert_eq!(wrong(below.clone(), row()), [""; 0]);
    let mut other = below.clone();
    other["below"][0][2] = json!(6);
    assert_ne!(wrong(other, row()), [""; 0]);
    let own = json!({ "size": 1000, "own": true, "stack": below["stack"] });
    assert_ne!(wrong(own, row()), [""; 0]);
}
