package dispatcher

// Stats is what one manager's dispatcher tells about itself.
type Stats struct {
	// Sessions is how many agents this manager hears.
	Sessions int
}

// Stats is cheap.
func (d *Dispatcher) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return Stats{Sessions: len(d.sessions)}
}
