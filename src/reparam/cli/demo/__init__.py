"""The whole story on bundled data: train, fold, prove, export, measure, show."""
