//! Who am I, who are the others: rank discovery and authenticated address exchange.
