//! Which names there are, and what no name can do.

use store::{ErrorKind, ObjectName, Prefix};

#[test]
fn names_that_every_driver_can_hold_are_taken() {
    for text in [
        "a",
        "packs/3f/3f9a.pack",
        "0",
        "a-b_c.d",
        "a.",
        &"x".repeat(128),
        "a/b/c/d",
    ] {
        assert_eq!(ObjectName::new(text).expect(text).as_str(), text);
    }
}

#[test]
fn names_that_could_leave_the_root_or_differ_between_drivers_are_refused() {
    let long_component = "x".repeat(129);
    let long_name = vec!["x".repeat(100); 6].join("/");
    let deep = vec!["x"; 17].join("/");
    for text in [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "../a",
        "a/../b",
        ".tmp",
        ".tmp/x",
        "a/.b",
        "A",
        "a b",
        "a\0b",
        "a\nb",
        "ä",
        "a\\b",
        "a%b",
        "a:b",
        &long_component,
        &long_name,
        &deep,
    ] {
        let error = ObjectName::new(text).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{text:?}");
    }
}

#[test]
fn a_prefix_matches_whole_components_only() {
    let prefix = Prefix::new("packs").expect("valid");
    assert_eq!(prefix, Prefix::new("packs/").expect("valid"));
    assert!(prefix.contains(&prefix.name("x").expect("valid")));
    assert!(!prefix.contains(&ObjectName::new("packs-old/x").expect("valid")));
    assert!(!prefix.contains(&ObjectName::new("packs").expect("valid")));
    assert!(Prefix::root().contains(&ObjectName::new("x").expect("valid")));
    assert_eq!(prefix.join("3f").expect("valid").as_str(), "packs/3f/");
    assert!(Prefix::new("/").is_err());
    assert!(Prefix::new("..").is_err());
    assert!(prefix.name("../x").is_err());
}
