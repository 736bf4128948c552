package wire

const FloodPause = floodPause

var RouteOf = routeOf

// SetSerial makes n the serial of the last message sent.
func (c *Conn) SetSerial(n uint32) { c.serial = n }
