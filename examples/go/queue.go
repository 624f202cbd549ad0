package embedbridge

import "slices"

// queue is what waits to be sent, each list in order.
type queue struct {
	suspects    []*piece // that a worker died with
	short, bulk []*piece
}

func (q *queue) lists() []*[]*piece { return []*[]*piece{&q.suspects, &q.short, &q.bulk} }

func (q *queue) lane(p *piece) *[]*piece {
	switch {
	case p.suspect:
		return &q.suspects
	case p.short():
		return &q.short
	default:
		return &q.bulk
	}
}

func (q *queue) push(p *piece) {
	lane := q.lane(p)
	*lane = append(*lane, p)
}

// pushFront puts pieces back, in this order.
func (q *queue) pushFront(pieces ...*piece) {
	for i := len(pieces) - 1; i >= 0; i-- {
		lane := q.lane(pieces[i])
		*lane = slices.Insert(*lane, 0, pieces[i])
	}
}

// next takes out the piece to send now, if any. Suspects go first, and alone.
func (q *queue) next(w *worker) *piece {
	if w.onTrial != nil || len(q.suspects) > 0 && len(w.pieces) > 0 {
		return nil
	}
	for _, list := range q.lists() {
		if len(*list) > 0 && w.hasRoom((*list)[0]) {
			p := (*list)[0]
			*list = slices.Delete(*list, 0, 1)
			return p
		}
	}
	return nil
}

func (q *queue) remove(j *job) {
	for _, list := range q.lists() {
		*list = slices.DeleteFunc(*list, func(p *piece) bool { return p.job == j })
	}
}
