//! The loop: kernel readiness to events, effects to system calls.
