//! Goals are at each test.
