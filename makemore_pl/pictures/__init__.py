"""What a learner looks at: TensorBoard, figures, a page to play with."""
