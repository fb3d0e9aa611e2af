"""Services that trio_nova knows, each in a module of its own; none is imported unless you name it."""
