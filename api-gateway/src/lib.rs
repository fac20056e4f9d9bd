pub mod adder;
