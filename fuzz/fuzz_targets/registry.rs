//! A registry hive (the first file) with its logs (the others): every key and value, and the facts of Windows.
#![no_main]

use std::ops::ControlFlow;

use guestfs::registry::windows::WindowsFacts;
use guestfs::registry::{Hive, WalkEvent};

hikae_fuzz::target!(input => {
    let files = hikae_fuzz::images::files(input);
    if let Some((primary, logs)) = files.split_first()
        && let Ok(hive) = Hive::open(primary.clone(), logs)
    {
        let mut left = 20_000;
        hive.walk(&mut |event| {
            left -= 1;
            match &event {
                WalkEvent::Key(_, key) => {
                    let _ = (key.name(), key.class_name(), key.security());
                }
                WalkEvent::Value(_, value) => {
                    let _ = (value.data(), value.text(), value.texts(), value.number());
                }
                WalkEvent::Damage(..) => {}
            }
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let _ = WindowsFacts::read(Some(&hive), Some(&hive));
    }
});
