"""An uploaded CSV: its text, its rows, what they ask for, and the splitter that queues them."""
